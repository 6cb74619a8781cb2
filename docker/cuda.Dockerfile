# docker build -f docker/cuda.Dockerfile -t se_detection:cuda .
# docs/CONTAINERS.md says how to run it.
FROM python:3.12-slim
# torch's packages bring CUDA; Triton compiles the starters of its kernels when they are first used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /tmp/source
WORKDIR /tmp/source
RUN pip install --no-cache-dir -c requirements.txt '.[export]' \
    && python se_detection/install_detectron2.py \
    && rm -rf /tmp/source
# The folder to mount. Downloaded weights are cached there too.
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["se-det"]
