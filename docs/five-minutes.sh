#!/usr/bin/env bash
# A stranger's first five minutes, in an empty folder:  five-minutes.sh WHEEL…
set -euo pipefail

python3 -m venv env
env/bin/pip install -q "$@"
export PATH="$PWD/env/bin:$PATH"
evergreen --version

evergreen example
evergreen init --data flights.csv --target late --time scheduled
evergreen train --first 40%

evergreen serve >server.log 2>&1 &
trap 'kill $! 2>/dev/null; wait' EXIT
port=${EVERGREEN_SERVE__PORT:-3000}
curl -sf --retry 120 --retry-all-errors --retry-delay 1 --retry-max-time 120 -o /dev/null "localhost:$port/readyz"

curl -sf "localhost:$port/predict" -H 'content-type: application/json' -d '{"ids": ["flight-1"], "records": [
  {"carrier": "UA", "origin": "EWR", "destination": "ORD", "weekday": "Friday", "hour": 17, "distance": 719, "built": 1999,
   "seats": 149, "temperature": 82.0, "wind": 16.1, "rain": 0.2, "visibility": 6.0}]}'
echo
curl -sf "localhost:$port/feedback" -H 'content-type: application/json' -d '{"labels": [{"id": "flight-1", "label": 1}]}'
echo
evergreen traffic --from 40% --rate 0 --label-delay 1

evergreen status
evergreen retrain --why "the summer is over" --wait || test $? = 3   # 3: a gate kept the champion
evergreen runs
