#!/usr/bin/env bash
# Makes the packaged files anew, in FOLDER: the matcher, the second one that evaluates, the judge, and the plain
# generators that runs start from.
# About three hours on two CPU cores. Killed, a matcher's training goes on when the script is run again.
# The judge's pictures and seed are its own: it must not share the matcher's training.
set -euo pipefail
folder=${1:?usage: make_assets.sh FOLDER}
here=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH=$here
tool="python -m vlm_plugin"

$tool data synthetic "$folder/birds" --train 10000 --validation 1000 --test 1000 --seed 0
$tool pretrain --data "$folder/birds" --out "$folder/birds.vlm.pt" --encoder conv --epochs 10 --half --seed 0

# The second matcher, which judges: another backbone, other pictures, another seed.
$tool data synthetic "$folder/birds-evaluator" --train 10000 --validation 500 --test 10 --seed 200
$tool pretrain --data "$folder/birds-evaluator" --out "$folder/birds.evaluator.vlm.pt" --encoder shufflenet --epochs 8 \
  --half --seed 7

$tool data synthetic "$folder/birds-judge" --train 8000 --validation 100 --test 1000 --seed 100
$tool judge --data "$folder/birds-judge" --out "$folder/birds.judge.pt" --epochs 10 --seed 1

# Plain DF-GAN: the matcher serves as text encoder alone. The packaged one had a generator_lr of 1e-4 for its first 2,403
# steps, 2e-4 after; here it is 2e-4 throughout, so the result is of the same kind, not the same. Both rates are half of
# what ships for going on from it.
sed -e 's/^generator_lr: [^ ]*/generator_lr: 2.0e-4/' -e 's/^discriminator_lr: [^ ]*/discriminator_lr: 4.0e-4/' \
  "$here/baselines/dfgan/cfg/synthetic.yml" > "$folder/dfgan.yml"
python "$here/baselines/dfgan/main.py" --cfg "$folder/dfgan.yml" --data "$folder/birds" --text-encoder "$folder/birds.vlm.pt" \
  --out "$folder/runs" --steps "${STEPS:-9140}" --seed 0
python "$here/baselines/export.py" "$(ls -d "$folder"/runs/*-dfgan | tail -n 1)" "$folder/dfgan.pt"

# Plain AttnGAN, with DAMSM. The packaged one had a generator_lr of 4e-4 and a DAMSM weight of .2 for its first 4,012
# steps, then 2e-4 and .05 as here, so again the result is of the same kind, not the same.
python "$here/baselines/attngan/main.py" --data "$folder/birds" --text-encoder "$folder/birds.vlm.pt" \
  --out "$folder/runs" --steps "${STEPS:-8117}" --seed 0
python "$here/baselines/export.py" "$(ls -d "$folder"/runs/*-attngan | tail -n 1)" "$folder/attngan.pt"
