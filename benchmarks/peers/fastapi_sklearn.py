"""FastAPI + scikit-learn: one uvicorn worker with uvloop and httptools, no access log, orjson both ways, no
model of the body; the pipeline is called on the event loop (a thread for each request gains nothing on one core)."""

import sys

import joblib
import orjson
import pandas as pd
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
pipeline = joblib.load(sys.argv[2])


@app.post("/predict")
async def predict(request: Request) -> Response:
    frame = pd.DataFrame(orjson.loads(await request.body())["records"])
    answer = {"probabilities": pipeline.predict_proba(frame)}
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


uvicorn.run(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    loop="uvloop",
    http="httptools",
    ws="none",
    access_log=False,
    log_level="warning",
)
