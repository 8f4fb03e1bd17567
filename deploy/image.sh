#!/usr/bin/env bash
# Builds the image with docker, podman or buildah, whichever is there; says its size, and writes build/image/sbom.cdx.json.
#   IMAGE (evergreen:VERSION), BASE, BUILD_BASE, SOURCE (the repository's public address), BUILDER; further options are
#   handed to the builder: deploy/image.sh --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
test -z "$(git status --porcelain 2>/dev/null)" || revision=$revision-changed
image=${IMAGE:-evergreen:$version}
as=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=${SOURCE:-}")
test -z "${BASE:-}" || as+=(--build-arg "BASE=$BASE")
test -z "${BUILD_BASE:-}" || as+=(--build-arg "BUILD_BASE=$BUILD_BASE")

builder=${BUILDER:-}
if test -z "$builder"; then
    if docker info >/dev/null 2>&1; then builder=docker
    elif command -v podman >/dev/null; then builder=podman
    elif command -v buildah >/dev/null; then builder=buildah
    else
        echo "no image builder is here: install docker, podman or buildah (Debian: apt-get install buildah)" >&2
        exit 1
    fi
fi

# A builder may come with options of its own, as in BUILDER="podman --root FOLDER"; only docker's format knows health checks.
mkdir -p build/image
sbom=/usr/share/evergreen/sbom.cdx.json
case $builder in
docker*)
    DOCKER_BUILDKIT=1 $builder build -t "$image" "${as[@]}" "$@" .
    container=$($builder create "$image")
    trap '$builder rm "$container" >/dev/null' EXIT
    $builder cp "$container:$sbom" build/image/sbom.cdx.json
    bytes=$($builder image inspect -f '{{.Size}}' "$image")
    ;;
podman*)
    $builder build --format docker -t "$image" "${as[@]}" "$@" .
    root=$($builder image mount "$image")
    trap '$builder image unmount "$image" >/dev/null' EXIT
    cp "$root$sbom" build/image/sbom.cdx.json
    bytes=$(du -sb "$root" | cut -f1)
    ;;
buildah*)
    $builder bud --format docker -t "$image" "${as[@]}" "$@" .
    container=$($builder from "$image")
    trap '$builder rm "$container" >/dev/null' EXIT
    root=$($builder mount "$container")
    cp "$root$sbom" build/image/sbom.cdx.json
    bytes=$(du -sb "$root" | cut -f1)
    ;;
esac
echo "$image: $((bytes / 1000000)) MB unpacked, built by ${builder%% *}; SBOM: build/image/sbom.cdx.json"
