# tada on a CPU, as a user without rights:
#   docker build -t tada .
#   docker run --rm -v "$PWD:/work" tada predict clip.mp4
#   docker run --rm -v "$PWD:/work" -p 127.0.0.1:8000:8000 tada serve run --host 0.0.0.0
# Where an index offers CPU builds of PyTorch: docker build --build-arg TORCH_OPTIONS="--index-url ADDRESS" .
FROM python:3.13-slim

ARG TORCH_OPTIONS=""
WORKDIR /opt/tada
COPY constraints.txt ./
RUN pip install --no-cache-dir $TORCH_OPTIONS -c constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt '.[serve]'

RUN useradd --create-home --uid 1000 tada && mkdir /work && chown tada /work
USER tada
WORKDIR /work
ENV MPLCONFIGDIR=/tmp/matplotlib
# Of `tada serve`, at its usual port; other commands end by themselves.
HEALTHCHECK --interval=1m --timeout=10s --start-period=2m CMD ! grep -qzx serve /proc/1/cmdline || python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz')"
ENTRYPOINT ["tada"]
CMD ["--help"]
