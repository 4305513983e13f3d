"""What a process that commands are forked from does once for all of them: Hydra learns its grammar as it reads."""

from hmtl.config.build import compose

for name in ("config", "plan"):
    compose("output_dir=none", name=name)
