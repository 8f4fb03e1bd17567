# docker build -t evergreen . && docker run -p 3000:3000 -v evergreen:/data evergreen
FROM python:3.11-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml requirements.lock README.md ./
COPY deploy/requirements.lock deploy/requirements.lock
RUN uv venv /opt/evergreen && uv pip sync --compile-bytecode --python /opt/evergreen/bin/python --require-hashes deploy/requirements.lock
COPY service service
COPY training training
COPY monitoring monitoring
RUN uv pip install --compile-bytecode --python /opt/evergreen/bin/python --no-deps .

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --uid 10001 evergreen && mkdir /data && chown evergreen /data
COPY --from=build /opt/evergreen /opt/evergreen
USER evergreen
WORKDIR /data
# The spool, the models and (by default) the database: a persistent volume.
VOLUME /data
ENV EVERGREEN_HOME=/data EVERGREEN_SERVE__HOST=0.0.0.0 PATH=/opt/evergreen/bin:$PATH
EXPOSE 3000
HEALTHCHECK --interval=5s --timeout=2s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/livez', timeout=2)"]
ENTRYPOINT ["evergreen"]
CMD ["serve"]
