# docker build -f docker/cpu.Dockerfile -t se_detection:cpu .
# docs/CONTAINERS.md says how to run it.
FROM python:3.12-slim
COPY . /tmp/source
WORKDIR /tmp/source
# torch's builds for CPUs come without the gigabytes of CUDA's packages.
RUN pip install --no-cache-dir -c requirements.txt torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c requirements.txt '.[export]' \
    && python se_detection/install_detectron2.py \
    && rm -rf /tmp/source
# The folder to mount. Downloaded weights are cached there too.
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["se-det"]
