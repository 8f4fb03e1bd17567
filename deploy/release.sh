#!/usr/bin/env bash
# Builds the wheel of each distribution into dist/, tries it in an environment of its own, and writes its bill of materials.
# Asks for a clean checkout and a dated version in CHANGELOG.md; ANYWAY=yes goes on without, and says so.
# WHEELS_ONLY=yes ends when they are built.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
uv="$python -m uv"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD)
faults=()
changed=
test -z "$(git status --porcelain)" || faults+=("the checkout has changes that are in no revision: commit them")
grep -qE "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md ||
    faults+=("CHANGELOG.md does not say when $version was released: ## [$version] - $(date -u +%F)")
for fault in "${faults[@]}"; do echo "release.sh: $fault" >&2; done
if test ${#faults[@]} -gt 0; then
    test "${ANYWAY:-}" = yes || exit 1
    changed=-changed
fi

# The same revision gives the same bytes, wherever it lies and whatever the umask: a copy is built, without what earlier
# builds left, and the compiler writes no path of it.
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$work/source
mkdir "$source"
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$source"
echo "$revision$changed" >"$source/service/revision.txt"
chmod -R u=rwX,go=rX "$source"  # a checkout under another umask has other modes
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CFLAGS="${CFLAGS:-} -ffile-prefix-map=$source=evergreen"

distributions=(.)
test ! -f client/pyproject.toml || distributions+=(client)
for folder in "${distributions[@]}"; do
    $uv build -q --wheel --no-build-isolation --python "$python" -o "$work/wheels" "$source/$folder"
done
rm -rf dist
mkdir dist
cp "$work"/wheels/*.whl dist/
test -z "${WHEELS_ONLY:-}" || exit 0

$uv venv -q --python "$python" "$work/tools"
$uv pip sync -q --python "$work/tools/bin/python" --require-hashes deploy/requirements.build.lock

# The server with what it was tested with. It may need the wheel of another distribution of ours: all are given.
$uv venv -q --python "$python" "$work/server"
$uv pip sync -q --python "$work/server/bin/python" --require-hashes deploy/requirements.lock
$uv pip install -q --python "$work/server/bin/python" --no-deps "$work"/wheels/*.whl
$uv pip check -q --python "$work/server/bin/python"
said=$(cd "$work" && server/bin/evergreen --version)
test "$said" = "evergreen $version (${revision:0:12}$changed)" || { echo "release.sh: the wheel says '$said'" >&2; exit 1; }
(cd "$work" && mkdir shop && cd shop && ../server/bin/evergreen example && ../server/bin/evergreen init --data flights.csv \
    --target late --time scheduled >/dev/null && ../server/bin/evergreen train --first 40%)
deploy/sbom.sh "$work/tools/bin/cyclonedx-py" "$work/server/bin/python" pyproject.toml \
    "dist/evergreen_serving-$version.cdx.json"

# The client alone, with nothing of the server.
for folder in "${distributions[@]:1}"; do
    wheel=$(ls "$work"/wheels/evergreen_client-*.whl)
    $uv venv -q --python "$python" "$work/client"
    $uv pip install -q --python "$work/client/bin/python" "$wheel"
    $uv pip check -q --python "$work/client/bin/python"
    (cd "$work" && client/bin/python -c 'from evergreen_client import Client; Client("http://127.0.0.1:1").close()')
    name=$(basename "$wheel")
    deploy/sbom.sh "$work/tools/bin/cyclonedx-py" "$work/client/bin/python" "$folder/pyproject.toml" "dist/${name%%-py3*}.cdx.json"
done

(cd dist && sha256sum -- * >SHA256SUMS)
echo "evergreen $version, revision $revision$changed:"
cat dist/SHA256SUMS
