# The whole project on a machine of its own:
#   docker build --tag hmtl .
#   docker run --rm hmtl                                   what `make train` does
#   docker run --rm hmtl train ARGS="r=2 rounds=50"
#   docker run --rm hmtl test                              what `make test` does
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --home-dir /hmtl hmtl
WORKDIR /hmtl
USER hmtl
COPY --chown=hmtl . .
RUN PIP_NO_CACHE_DIR=1 make .venv/train .venv/test
ENTRYPOINT ["make"]
CMD ["train"]
