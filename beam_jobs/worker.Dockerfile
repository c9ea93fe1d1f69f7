# Workers of Dataflow, Flink and Spark: Beam's own image with the versions of requirements.lock and this package.
#   docker build -f beam_jobs/worker.Dockerfile -t dnc-beam .
FROM apache/beam_python3.11_sdk:2.77.0
WORKDIR /dnc
COPY requirements.lock setup.py README.md ./
RUN pip install --no-cache-dir --no-deps -r requirements.lock
COPY contracts contracts
COPY beam_jobs beam_jobs
RUN pip install --no-cache-dir --no-deps . \
 && pip install --no-cache-dir -c requirements.lock 'apache-beam[gcp,aws]==2.77.0'
