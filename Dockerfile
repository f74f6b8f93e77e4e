# The image of every node of a cluster, as cluster.yaml and deploy/rayjob.yaml name it.
#
#   docker build --target gpu -t REGISTRY/idc_ray:gpu .    # torch with CUDA; the driver comes from the machine
#   docker build --target cpu -t REGISTRY/idc_ray:cpu .    # for the head and for nodes without a GPU
#
# The image contains all packages, so that a new node is ready once it has pulled the image, and the code, for
# deploy/rayjob.yaml. The code of `ray job submit --working-dir .` takes precedence.
#
# Another package index: --build-arg PIP_INDEX_URL=... or --build-arg PIP_EXTRA_INDEX_URL=...
# The usual index has torch for Linux with CUDA only: name one that has CPU builds, and the CPU image is GBs smaller.

ARG RAY_VERSION=2.60.0

# It brings the same Ray on every node, the user `ray`, and what the cluster launcher and KubeRay call inside.
FROM rayproject/ray:${RAY_VERSION}-py311-cpu AS base
ARG RAY_VERSION
USER ray
WORKDIR /home/ray/idc_ray
# Of the project only what says which packages it needs: a change of code leaves these layers alone.
COPY --chown=ray pyproject.toml constraints-cpu.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = p['optional-dependencies']; \
    print(*p['dependencies'], *extras['teachers'], *extras['experiments'], sep='\n')" > requirements.txt \
 && echo "ray==${RAY_VERSION}" > constraints-ray.txt
ENV PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONPATH=/home/ray/idc_ray

FROM base AS cpu-packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c constraints-cpu.txt torch torchvision
RUN pip install -c constraints-cpu.txt -c constraints-ray.txt -r requirements.txt

FROM base AS gpu-packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The same torch as on CPUs, here with the CUDA libraries that it was built for: one version in a cluster.
RUN pip install -c constraints-cpu.txt torch torchvision
RUN pip install -c constraints-cpu.txt -c constraints-ray.txt -r requirements.txt
# What the container runtime reads to let the GPUs and the driver in.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM cpu-packages AS cpu
COPY --chown=ray runtime_env.yaml LICENSE README.md ./
COPY --chown=ray jobs jobs
COPY --chown=ray tune_spaces tune_spaces
COPY --chown=ray idc_ray idc_ray

FROM gpu-packages AS gpu
COPY --chown=ray runtime_env.yaml LICENSE README.md ./
COPY --chown=ray jobs jobs
COPY --chown=ray tune_spaces tune_spaces
COPY --chown=ray idc_ray idc_ray
