# The same contents without thought, to be compared with: everything copied first, packages with what they recommend,
# Playwright's own way of naming the browser, both copies of the CLI, caches kept. Not used by anything else.
ARG BASE_IMAGE=node:20-bookworm-slim
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
COPY . /app
WORKDIR /app
RUN apt-get update && apt-get install -y ca-certificates chromium curl fd-find fonts-liberation git jq procps \
    python-is-python3 python3 ripgrep
RUN NODE_EXTRA_CA_CERTS=/app/ca.crt npm install --loglevel=error
RUN useradd --create-home agent || true
USER node
CMD ["sleep", "infinity"]
