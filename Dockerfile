# What every node of a cluster runs: `docker build --tag latentmill:0.1.0 .`
#
# A plain Python image, not nvidia/cuda: PyPI's torch brings the CUDA libraries it was built with, the driver comes from
# the machine, and a second copy of CUDA would only be larger. `@sha256:...` behind the tag pins it to the byte.
FROM python:3.11.14-slim-bookworm

# gcc: --compile builds with it. rsync: Ray's cluster launcher copies files into the container with it.
# wget: KubeRay before 1.6 asks with it whether a node is well.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev rsync wget \
    && rm -rf /var/lib/apt/lists/*

# The launcher mounts and copies files as user 1000 of its machines, and reads HOME from the image.
RUN useradd --create-home --uid 1000 mill
ENV HOME=/home/mill \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
WORKDIR /home/mill/latentmill

# Packages first: this layer of gigabytes stays as it is when only code changes. boto3 is for the launcher's autoscaler.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY stvae/__init__.py stvae/
COPY pipeline/__init__.py pipeline/
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[s3]' boto3

COPY stvae stvae
COPY pipeline pipeline
COPY jobs jobs

USER 1000
