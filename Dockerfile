# The image that every node of a cluster runs: `docker build --tag latentmill:0.1.0 .`
#
# The base is a plain Python image and not nvidia/cuda: PyPI's torch includes the CUDA libraries it was built with, and the
# driver comes from the machine, so a second copy of CUDA would only add size. To pin the image to the byte, add
# `@sha256:...` after the tag.
FROM python:3.11.14-slim-bookworm

# gcc builds the kernels of --compile. Ray's cluster launcher copies files into the container with rsync. KubeRay before
# 1.6 checks the health of a node with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev rsync wget \
    && rm -rf /var/lib/apt/lists/*

# Ray's cluster launcher mounts and copies files as user 1000 of its machines, and reads HOME from the image.
RUN useradd --create-home --uid 1000 mill
ENV HOME=/home/mill \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
WORKDIR /home/mill/latentmill

# Install the packages first, so that this layer of several gigabytes stays cached when only code changes. The
# autoscaler on the head needs boto3.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY stvae/__init__.py stvae/
COPY pipeline/__init__.py pipeline/
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[encode,s3,text]' boto3

COPY stvae stvae
COPY pipeline pipeline
COPY jobs jobs

USER 1000
