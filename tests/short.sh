# What makes commands of the pages short. Bash reads it before each of them: BASH_ENV.

train() {
    case "$*" in
        *resume=*) "$@" rounds=3 ;;
        *) "$@" rounds=2 ;;
    esac
}

python() {
    case "$1 $2" in
        "-m hmtl.train" | "-m hmtl.launch" | experiments/processes.py*) train command python "$@" ;;
        "-m hmtl.tune") command python "$@" rounds=2 tune.folds=2 ;;
        experiments/fig*) command python "$@" --quick --draws 1 ;;
        experiments/compare.py* | experiments/mocha*) command python "$@" --seeds 1 --rounds 2 --methods local ;;
        experiments/*) command python "$@" --seeds 1 --rounds 2 ;;
        *) command python "$@" ;;
    esac
}

torchrun() {
    train command torchrun "$@"
}

tensorboard() {
    command tensorboard "$@" --inspect # instead of serving it
}

pytest() {
    (cd "$ROOT" && command pytest "$@" --collect-only)
}

make() {
    command make --dry-run --directory "$ROOT" "$@"
}
