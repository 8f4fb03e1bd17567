# `make image` builds it with docker, podman or buildah, says how large it became, and leaves its SBOM in build/image/.
# It runs without root on a read-only root file system; /data and /tmp are written:
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -p 3000:3000 -v evergreen:/data evergreen
ARG BASE=python:3.11-slim
# Where what runs is put together. A compiler may be there, to build what is optional; it stays there. Same Python as BASE.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore UV_NO_CACHE=1 UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deploy/requirements.lock deploy/requirements.image.lock deploy/requirements.build.lock deploy/
# An index of your own, and what its certificate is signed by, come as secrets: nothing of them is in a layer.
#   --secret id=pip,src=pip.conf --secret id=uv,src=uv.toml --secret id=ca,src=ca-certificates.crt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/tools \
    && /opt/tools/bin/python -m pip install -q --require-hashes -r deploy/requirements.build.lock \
    && /opt/tools/bin/uv venv -q --python "$(command -v python3)" /opt/evergreen \
    && /opt/tools/bin/uv pip sync -q --compile-bytecode --python /opt/evergreen/bin/python --require-hashes \
        deploy/requirements.lock deploy/requirements.image.lock
COPY service service
COPY training training
COPY monitoring monitoring
COPY client client
COPY deploy/alive.py /opt/evergreen/alive.py
COPY deploy/sbom.sh deploy/sbom.sh
ARG REVISION=unknown
# Tests of the libraries are no part of what runs, nor are headers to build against and extensions of notebooks.
RUN echo "$REVISION" >service/revision.txt && for project in . client; do \
        /opt/tools/bin/uv build -q --wheel --no-build-isolation --python /opt/tools/bin/python -o /src/wheel $project \
        || exit 1; done \
    && /opt/tools/bin/uv pip install -q --compile-bytecode --python /opt/evergreen/bin/python --no-deps wheel/*.whl \
    && mkdir -p /usr/share/evergreen \
    && deploy/sbom.sh /opt/tools/bin/cyclonedx-py /opt/evergreen/bin/python pyproject.toml \
        /usr/share/evergreen/sbom.cdx.json \
    && cd /opt/evergreen/lib/python3.*/site-packages \
    && for library in numpy scipy pandas sklearn statsmodels pyarrow nltk; do \
        find $library -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +; done \
    && rm -rf pyarrow/include jupyterlab_plotly

FROM ${BASE}
ARG REVISION=unknown
ARG VERSION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="Evergreen" \
      org.opencontainers.image.description="A prediction service that keeps its own model fresh" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# tini ends what a killed worker leaves behind. The base's own pip is not for who runs here.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 tini && rm -rf /var/lib/apt/lists/* \
    && rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* \
    && groupadd --gid 10001 evergreen \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin evergreen \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/evergreen /opt/evergreen
COPY --from=build /usr/share/evergreen /usr/share/evergreen
COPY LICENSE /usr/share/evergreen/LICENSE
USER 10001:10001
WORKDIR /data
# The spool, the models and (by default) the database: a persistent volume.
VOLUME /data
ENV EVERGREEN_HOME=/data EVERGREEN_SERVE__HOST=0.0.0.0 HOME=/data PATH=/opt/evergreen/bin:$PATH PYTHONDONTWRITEBYTECODE=1
EXPOSE 3000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["python3", "-IS", "/opt/evergreen/alive.py"]
ENTRYPOINT ["tini", "--", "evergreen"]
CMD ["serve"]
