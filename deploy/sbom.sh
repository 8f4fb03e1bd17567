#!/bin/sh
# The bill of materials (CycloneDX, JSON) of what is installed for PYTHON:  sbom.sh CYCLONEDX_PY PYTHON PYPROJECT FILE
set -eu
"$1" environment --pyproject "$3" --mc-type application --output-reproducible --validate --of JSON -o "$4" "$2"
