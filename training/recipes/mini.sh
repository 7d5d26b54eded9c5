#!/usr/bin/env bash
# The bundled model, from random weights: about two hours on two CPU threads.
#   training/recipes/mini.sh DATA OUT
# DATA holds text/ (one paragraph a line), weak_pairs/ (heading and text), and the BEIR folders jaquad and
# wikinews, of which only the train splits are read. Each step resumes where it was killed.
set -euo pipefail
data=$1 out=$2
python=${PYTHON:-.venv/bin/python}

# Weights: documentation and law repeat their wording, and Aozora's is of 1890 to 1960.
"$python" -m training.pretrain --text "$data/text" --out "$out/pretrain" --steps 1300 \
    --weights aozora=0.25,sql_docs=0.3,dynamics_docs=0.4,dotnet_docs=0.6,law=0.5

"$python" -m training.pairs --weak "$data/weak_pairs" --out "$out/weak.jsonl"
"$python" -m training.pairs --beir "$data/jaquad" --beir "$data/wikinews" --out "$out/pairs.jsonl"

"$python" -m training.distill --base "$out/pretrain" --data "$out/weak.jsonl" --out "$out/weak" \
    --steps 300 --learning-rate 5e-4 --query-length paper
"$python" -m training.distill --base "$out/weak" --data "$out/pairs.jsonl" --out "$out/model" \
    --steps 900 --learning-rate 5e-4 --query-length paper
