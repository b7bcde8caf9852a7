# nnU-Net with deferral. A GPU is used if the container has one.
#
#   docker build -t nnunetv2-deferral .
#   docker run --rm --gpus all --shm-size 8g -v /data/nnunet:/data nnunetv2-deferral nnUNetv2_predict -i ... -o ...
#
# For a smaller image without CUDA, take PyTorch's wheels for CPUs:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t nnunetv2-deferral:cpu .
# BASE may be any image with Python 3.10 or newer and pip, such as one that has PyTorch already.
ARG BASE=python:3.11-slim
FROM ${BASE}

# The versions are those that setup.cfg allows and the index has.
ARG TORCH_INDEX=""
ARG EXTRAS=review,dicom,surfaces
# hadolint ignore=DL3013
RUN if [ -n "${TORCH_INDEX}" ]; then pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch torchvision; fi
COPY . /src
# The link is the same for all versions of Python.
RUN pip install --no-cache-dir "/src[${EXTRAS}]" && rm -rf /src && \
    ln -s "$(nnUNetv2_deferral_doctor --trainers)" /opt/nnUNet_extTrainer

ENV nnUNet_raw=/data/nnUNet_raw \
    nnUNet_preprocessed=/data/nnUNet_preprocessed \
    nnUNet_results=/data/nnUNet_results \
    nnUNet_extTrainer=/opt/nnUNet_extTrainer
WORKDIR /data
CMD ["nnUNetv2_deferral_doctor", "--help"]
