"""`hmtl COMMAND ...`, the same as `python -m hmtl.COMMAND ...`."""

from hmtl.io.leaving import leave_at_once, leave_with

if __name__ == "__main__":
    leave_at_once()  # before what takes long to import

import runpy
import sys

import hmtl

COMMANDS = {
    "train": "train over a two-hop network, counting every bit",
    "plan": "what coding would save on a network, without training",
    "tune": "settings by cross-validation",
    "report": "runs and sweeps in one table, as CSV and as a picture",
    "predict": "what the models of a run say of new rows",
    "launch": "all processes of a run on this machine",
}
COMPLETION = """_hmtl() {
    local cut=${COMP_WORDBREAKS//=/}
    [ "$cut" = "$COMP_WORDBREAKS" ] || COMP_WORDBREAKS=$cut
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=($(compgen -W "@" -- "${COMP_WORDS[1]}"))
    elif [ "${COMP_WORDS[1]}" = report ]; then
        COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
    else
        local command=${COMP_WORDS[1]/launch/train} line=${COMP_LINE#*"${COMP_WORDS[1]}"} own='processes=[0-9]*'
        [[ $line =~ $own ]] && line=${line/"${BASH_REMATCH[0]}"/}
        COMPREPLY=($(COMP_LINE="hmtl$line" COMP_POINT=9999 hmtl "$command" -sc query=bash 2> /dev/null))
    fi
    compopt -o nospace 2> /dev/null
}
complete -F _hmtl hmtl
"""


def main() -> None:
    """The command that the first word names."""
    leave_at_once()
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print("hmtl COMMAND ..., where COMMAND is one of\n")
        for name, what in COMMANDS.items():
            print(f"  {name:8} {what}")
        print("\nhmtl COMMAND --help tells more of one; completion in bash, and zsh's bashcompinit: hmtl --completion")
    elif command == "--version":
        print(hmtl.__version__)
    elif command == "--completion":
        print(COMPLETION.replace("@", " ".join(COMMANDS)), end="")
    elif command in COMMANDS:
        sys.argv = [f"hmtl.{command}", *words]
        runpy.run_module(f"hmtl.{command}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: there is no command {command!r}: choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        leave_with(2)


if __name__ == "__main__":
    main()
