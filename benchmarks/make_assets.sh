#!/usr/bin/env bash
# Makes the packaged files anew, in FOLDER: the matcher, the judge, and the plain DF-GAN that the main job starts from.
# About three hours on two CPU cores. Every step resumes after a kill.
# The judge's pictures and seed are its own: it must not share the matcher's training.
set -euo pipefail
folder=${1:?usage: make_assets.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$here
tool="python -m vlm_plugin"

$tool data synthetic "$folder/birds" --train 10000 --validation 1000 --test 1000 --seed 0
$tool pretrain --data "$folder/birds" --out "$folder/birds.vlm.pt" --encoder conv --epochs 10 --half --seed 0

$tool data synthetic "$folder/birds-judge" --train 8000 --validation 100 --test 1000 --seed 100
$tool judge --data "$folder/birds-judge" --out "$folder/birds.judge.pt" --epochs 10 --seed 1

# Plain DF-GAN: the matcher serves as text encoder alone.
python "$here/baselines/dfgan/main.py" --data "$folder/birds" --text-encoder "$folder/birds.vlm.pt" \
  --out "$folder/runs" --steps "${STEPS:-10000}" --seed 0
python -m baselines.dfgan.export "$folder"/runs/00000-dfgan "$folder/birds.pt"
