#!/usr/bin/env bash
# Runs all stages of a recipe in order. Each goes on where it was; a finished one does nothing.
#
#   training/recipes/run.sh NAME|FILE.toml [OPTIONS]
#
# NAME is that of a file beside this one, without .toml. OPTIONS go to every step: those that all of them take,
# such as --limit 200 for a quick try, which works in OUT-limit-200 and so never mixes with a full run.
# Environment variables that a recipe names in [paths] win over it; relative ones count from the checkout:
#
#   DATA=/srv/data OUT=/srv/runs/mini training/recipes/run.sh mini
#   NPROC=4 training/recipes/run.sh jacolbert-v2.5     # distill and score by four processes, one a GPU
#   PYTHON=python3 training/recipes/run.sh mini        # else .venv/bin/python
set -euo pipefail

if (($# == 0)); then
    sed -n '2,/^set/{/^#/p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=$here/$1.toml
if [[ $1 == *.toml ]]; then
    recipe=$(realpath "$1")
fi
shift
cd "$here/../.."
python=${PYTHON:-.venv/bin/python}

limit=
for ((i = 1; i <= $#; i++)); do
    next=$((i + 1))
    case ${!i} in
        --limit) limit=${!next-} ;;
        --limit=*) limit=${!i#*=} ;;
    esac
done

# Into variables first: a failure within <(…) would go unseen.
plan=$("$python" -m training.recipe "$recipe")
out=$("$python" -m training.recipe "$recipe" --path OUT)
export OUT=$out${limit:+-limit-$limit}

while IFS=$'\t' read -r step stage <&3; do
    launch=(-m "training.$step")
    if [[ ${NPROC:-1} != 1 && ($step == distill || $step == score) ]]; then
        launch=(-m torch.distributed.run --standalone --nproc-per-node "$NPROC" "${launch[@]}")
    fi
    echo "== $stage ($step)" >&2
    "$python" "${launch[@]}" --config "$recipe" --stage "$stage" "$@"
done 3<<<"$plan"
echo "== done: $OUT" >&2
