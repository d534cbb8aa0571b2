# tada on a CPU, as a user without rights:
#   docker build -t tada .
#   docker run --rm -v "$PWD:/work" tada predict clip.mp4
# Where an index offers CPU builds of PyTorch: docker build --build-arg TORCH_OPTIONS="--index-url ADDRESS" .
FROM python:3.13-slim

ARG TORCH_OPTIONS=""
WORKDIR /opt/tada
COPY constraints.txt ./
RUN pip install --no-cache-dir $TORCH_OPTIONS -c constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt .

RUN useradd --create-home --uid 1000 tada && mkdir /work && chown tada /work
USER tada
WORKDIR /work
ENV MPLCONFIGDIR=/tmp/matplotlib
HEALTHCHECK --interval=5m --timeout=60s CMD ["tada", "doctor"]
ENTRYPOINT ["tada"]
CMD ["--help"]
