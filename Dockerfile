# A run folder, served over HTTP. The run is mounted, so that one image serves every run.
#
#   docker build --tag eimf .
#   docker run --publish 127.0.0.1:8412:8412 --volume "$PWD/lightning_logs/demo-comirec_sa/version_0:/served:ro" eimf
#
# Further arguments of `eimf serve` go to the end, such as --name recommender.example.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
COPY experiments ./experiments
RUN pip install --no-cache-dir --constraint constraints.txt .
RUN useradd --no-create-home served
USER served
EXPOSE 8412
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8412/health', timeout=5)"]
ENTRYPOINT ["eimf", "serve", "/served", "--host", "0.0.0.0", "--port", "8412"]
