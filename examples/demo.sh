#!/usr/bin/env bash
# The whole path, each command printed before it runs. A second run reuses what is there.
set -euo pipefail

BIN=${BIN:-.venv/bin}
OUT=${OUT:-.demo}
RECIPE=recipes/demo.toml
export HF_HUB_OFFLINE=1 # nothing of the demo is fetched

show() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$BIN/$1" "${@:2}"
}

show jasper-cache build --recipe $RECIPE --out "$OUT/cache"
for stage in 1 2 3; do
    show jasper-train --stage $stage --cache "$OUT/cache" --out "$OUT/run" --recipe $RECIPE
done
show jasper-student evaluate "$OUT/run/stage-3"
if [ -e "$OUT/model/modules.json" ]; then
    cat <<END

$OUT/model: exported before. Load it, in any environment that has sentence-transformers, with:

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("$OUT/model")
    vectors = model.encode(["a text", "another"])
END
else
    show jasper-student export "$OUT/run/stage-3" "$OUT/model" --head fc1
fi
show jasper-train --stage 4 --cache "$OUT/cache" --out "$OUT/run" --recipe $RECIPE
show jasper-student recall "$OUT/run" --recipe $RECIPE
show jasper-student report "$OUT/run" --out "$OUT/report.html"
printf '\nAll of it on one page, for any browser: %s\n' "$OUT/report.html"
