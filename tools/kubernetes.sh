#!/usr/bin/env bash
# The control plane of the Kubernetes tests: kube-apiserver and kubectl 1.35.4, and helm 4.1.4 to render the chart. One module holds the three, so
# they share most of their packages. Checked against tools/kubernetes/go.sum. Prints the folder in which they are.
. "$(dirname "$0")/lib.sh"

VERSION=1.35.4
NAMES="-X k8s.io/component-base/version.gitVersion=v$VERSION -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35"

build() {
  say "  Kubernetes $VERSION: go build of kube-apiserver, kubectl and helm from their modules (the control plane of the tests; some minutes, once)"
  (cd "$TOOLS/kubernetes" && go_build -tags=grpcnotrace -ldflags "-s -w $NAMES" -o "$OLDPWD/" \
    k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl helm.sh/helm/v4/cmd/helm)
}

once "kubernetes-$VERSION" build
echo "$CACHE/kubernetes-$VERSION"
