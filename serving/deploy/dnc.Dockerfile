# The command line with all that it needs: `dnc serve`, which has ScaNN's ops, and `dnc retrain`.
#   docker build -f serving/deploy/dnc.Dockerfile -t dnc-retrieval .
FROM python:3.11-slim
WORKDIR /dnc
COPY requirements.lock setup.py README.md ./
RUN pip install --no-cache-dir --no-deps -r requirements.lock
COPY contracts contracts
COPY beam_jobs beam_jobs
COPY trainer trainer
COPY serving serving
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps . && python -m compileall -q /usr/local/lib/python3.11/site-packages
RUN useradd --create-home --uid 1000 dnc
USER dnc
EXPOSE 8500 8501
ENTRYPOINT ["dnc"]
