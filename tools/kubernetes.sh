#!/usr/bin/env bash
# The control plane of the Kubernetes tests: kube-apiserver, kube-controller-manager and kubectl 1.35.4, cert-manager's controllers 1.20.1 with the
# definitions of its kinds, and helm 4.1.4 to render the chart. One module holds them all, so they share most of their packages. Checked against
# tools/kubernetes/go.sum. Prints the folder in which they are.
. "$(dirname "$0")/lib.sh"

VERSION=1.35.4
NAMES="-X k8s.io/component-base/version.gitVersion=v$VERSION -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35"

build() {
  say "  Kubernetes $VERSION: go build of its API server and controllers, kubectl, cert-manager and helm from their modules (the control plane of the tests; some minutes, once)"
  (cd "$TOOLS/kubernetes" && go_build -tags=grpcnotrace -ldflags "-s -w $NAMES" -o "$OLDPWD/" \
    k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kubectl ./cert-manager \
    helm.sh/helm/v4/cmd/helm)
  cat "$(cd "$TOOLS/kubernetes" && go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)"/deploy/crds/*.yaml >cert-manager.yaml
}

once "kubernetes-$VERSION-cert-manager-1.20.1" build
echo "$CACHE/kubernetes-$VERSION-cert-manager-1.20.1"
