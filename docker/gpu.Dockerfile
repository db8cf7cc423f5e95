# A host of NVIDIA GPUs, driver 580 or newer (CUDA 13 comes with the packages):
#
#   docker build -f docker/gpu.Dockerfile -t t5x_llm:gpu .
#   docker run --rm --gpus=all --shm-size=8g -v "$PWD:/work" t5x_llm:gpu train --gin_file=RECIPE.gin
#
# Versions are those of requirements/lock.txt. Nothing secret goes into an image: keys come as
# environment variables or mounted files.
FROM python:3.13-slim-bookworm

ENV PYTHONUNBUFFERED=1 UV_LINK_MODE=copy
COPY requirements/uv.txt /opt/t5x_llm/requirements/
RUN pip install --no-cache-dir -r /opt/t5x_llm/requirements/uv.txt

# Packages first: a change of the code builds none of these again.
COPY requirements/lock.txt /opt/t5x_llm/requirements/
COPY pyproject.toml /opt/t5x_llm/
WORKDIR /opt/t5x_llm
RUN uv pip install --system --no-cache --compile-bytecode --constraint requirements/lock.txt \
      --requirements pyproject.toml --extra cuda --extra clean --extra wandb --extra mlflow

COPY README.md LICENSE /opt/t5x_llm/
COPY scripts/package_data.py /opt/t5x_llm/scripts/
COPY t5x_llm /opt/t5x_llm/t5x_llm
COPY configs /opt/t5x_llm/configs
COPY data /opt/t5x_llm/data
RUN uv pip install --system --no-cache --compile-bytecode --no-deps . && t5x-llm --version

WORKDIR /work
ENTRYPOINT ["t5x-llm"]
