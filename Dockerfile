# One image for every process of the mesh; the command says which.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/mesh
# What changes seldom comes first: the packages are installed again only when the lock changes.
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/mesh/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY lb lb
RUN /opt/mesh/bin/python -m pip install --quiet --no-deps --no-index --no-build-isolation .
COPY services /app/services
COPY stubs/mesh /app/mesh
COPY deploy/start.py deploy/health.py /app/
# The root is read-only when it runs, so nothing could be compiled then.
RUN /opt/mesh/bin/python -m compileall -q /app

FROM python:3.13-slim
ENV PATH=/opt/mesh/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A named volume takes owner and mode from here when it is made.
RUN install -d -o 10001 -g 10001 -m 0750 /data
COPY --from=build /opt/mesh /opt/mesh
COPY --from=build /app /app
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["python", "-I", "-S", "/app/start.py"]
CMD ["services.gateway"]
