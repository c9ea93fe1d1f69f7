# TF Serving with ScaNN's ops linked in, for the `scann` servable. A recipe: building takes hours and
# tens of GB, and we have not done it; see "ScaNN's ops and TF Serving" in docs/serving.md.
#   docker build -f serving/deploy/tf_serving_scann.Dockerfile -t tf-serving-scann:2.20.0 \
#     --build-arg SCANN_COMMIT=<commit of google-research of ScaNN 1.4.2's release> .
#
# The three versions go together: ScaNN 1.4.2's ops are written for TensorFlow 2.20, which is TF Serving 2.20's.
ARG TF_SERVING_VERSION=2.20.0
FROM tensorflow/serving:${TF_SERVING_VERSION}-devel AS build
ARG TF_SERVING_VERSION=2.20.0
ARG SCANN_COMMIT
RUN test -n "${SCANN_COMMIT}" || (echo "say which: --build-arg SCANN_COMMIT=..." && false)
WORKDIR /tensorflow-serving
RUN git fetch --depth 1 origin tag ${TF_SERVING_VERSION} && git checkout ${TF_SERVING_VERSION}
RUN mkdir /scann && curl -sSL --retry 5 \
      https://github.com/google-research/google-research/archive/${SCANN_COMMIT}.tar.gz \
    | tar -xz -C /scann --strip-components=2 google-research-${SCANN_COMMIT}/scann
# ScaNN's own patch makes its library build against TF Serving's TensorFlow and adds :scann_ops_static.
RUN cd /scann && patch -p1 < tf_serving/patches/scann/tf_serving.patch
# ScaNN 1.4.2 looks at the CPU only where this is defined, and nobody defines it: its AVX2 kernels would lie unused.
RUN sed -i '1i #if defined(__x86_64__) && !defined(PLATFORM_IS_X86)\n#define PLATFORM_IS_X86\n#endif' \
      /scann/scann/oss_wrappers/scann_cpu_info.h
# Two edits: where Bazel finds ScaNN, and the list of ops that the server links.
RUN printf '\nlocal_repository(\n    name = "com_google_scann",\n    path = "/scann",\n)\n' >> WORKSPACE \
 && sed -i 's|\(.*"@org_tensorflow_text//tensorflow_text:ops_lib",\)|\1\n    "@com_google_scann//scann/scann_ops/cc:scann_ops_static",|' \
      tensorflow_serving/model_servers/BUILD \
 && grep -q scann_ops_static tensorflow_serving/model_servers/BUILD
# ScaNN needs AVX2 and FMA, so does the machine that runs this.
RUN bazel build --config=release --copt=-mavx2 --copt=-mfma --cxxopt=-std=c++17 --verbose_failures \
      tensorflow_serving/model_servers:tensorflow_model_server \
 && cp bazel-bin/tensorflow_serving/model_servers/tensorflow_model_server /usr/local/bin/

FROM tensorflow/serving:${TF_SERVING_VERSION}
COPY --from=build /usr/local/bin/tensorflow_model_server /usr/bin/tensorflow_model_server
