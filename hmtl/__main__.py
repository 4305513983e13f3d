"""The `hmtl` command: `hmtl COMMAND ...` is the same as `python -m hmtl.COMMAND ...`."""

import runpy
import signal
import sys

import hmtl
from hmtl.errors import complain, did_you_mean, handle_interrupts

COMMANDS = {
    "train": "train over a two-hop network and count every bit",
    "plan": "compare coding with plain forwarding on a network, without training",
    "tune": "choose settings by cross-validation",
    "report": "compare runs and sweeps in tables and a picture",
    "predict": "apply the models of a run to new rows",
    "launch": "start all processes of a run on this machine",
    "node": "run one node of a deployment over several machines",
    "certificates": "make the certificates of a deployment",
    "new": "write a small project to begin with",
}


def main() -> None:
    """Run the command that the first argument names."""
    handle_interrupts()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print("usage: hmtl COMMAND ...\n\ncommands:")
        for name, summary in COMMANDS.items():
            print(f"  {name:12} {summary}")
        print("\nSee hmtl COMMAND --help for the settings of a command.")
    elif command == "--version":
        print(hmtl.__version__)
    elif command in COMMANDS:
        sys.argv = [f"hmtl.{command}", *arguments]
        try:
            runpy.run_module(f"hmtl.{command}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
    else:
        remedy = did_you_mean(command, COMMANDS, f"Choose one of {', '.join(COMMANDS)}.")
        complain(f"{command!r} is not a command. {remedy}")
        sys.exit(2)


if __name__ == "__main__":
    main()
