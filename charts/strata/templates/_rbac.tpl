{{/* Rights: as few as each role needs. Every rule is written here once. */}}

{{- define "strata.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "strata.serviceAccount" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "strata.roleLabels" . | nindent 4 }}
  {{- with .root.Values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: {{ ne .role "nats" }}
{{- end }}

{{/* In: root, role (for labels), kind (Role or ClusterRole), name, namespace (none: a ClusterRoleBinding), account. */}}
{{- define "strata.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ empty .namespace | ternary "ClusterRoleBinding" "RoleBinding" }}
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "strata.roleLabels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ .kind }}, name: {{ .name }}}
subjects:
  - {kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{/* What is looked at, in all namespaces or in each of a list. In: root, role. Out: rules, or nothing. */}}
{{- define "strata.looks" -}}
{{- $values := .root.Values }}
{{- if ne .role "relay" }}
{{- $core := list }}
{{- if $values.rbac.pods }}{{ $core = append $core "pods" }}{{ end }}
{{- if $values.rbac.services }}{{ $core = append $core "services" }}{{ end }}
{{- if $values.rbac.endpoints }}{{ $core = append $core "endpoints" }}{{ end }}
{{- if $values.rbac.nodes }}{{ $core = append $core "nodes" }}{{ end }}
{{- if $values.rbac.namespaces }}{{ $core = append $core "namespaces" }}{{ end }}
{{- with $core }}
- {apiGroups: [""], resources: [{{ join ", " . }}], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.endpointSlices }}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.ingresses }}
- {apiGroups: [networking.k8s.io], resources: [ingresses], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.replicaSets }}
- {apiGroups: [apps], resources: [replicasets], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.jobs }}
- {apiGroups: [batch], resources: [jobs], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.kubeletMetrics }}
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
{{- end }}
{{- if $values.rbac.kubeletProxy }}
- {apiGroups: [""], resources: [nodes/proxy], verbs: [get]}
{{- end }}
{{- end }}
{{- with include "strata.objects" . | trim }}
{{ . }}
{{- end }}
{{- if and (ne .role "relay") $values.rbac.extraRules }}
{{ toYaml $values.rbac.extraRules }}
{{- end }}
{{- end }}

{{/* Objects that become jobs and relays, and what they name. Of Strata's own namespace they are read in any case. In: root, role. Out: rules, or nothing. */}}
{{- define "strata.objects" -}}
{{- $values := .root.Values }}
{{- $kubernetes := $values.config.kubernetes | default dict }}
{{- $monitors := and $kubernetes.prometheus_operator (ne .role "relay") }}
{{- $written := dict "collector" "discoveries/status" "relay" "collectors/status, relays/status" "strata" "discoveries/status, collectors/status, relays/status" }}
{{- if $monitors }}
- {apiGroups: [monitoring.coreos.com], resources: [servicemonitors, podmonitors, probes, scrapeconfigs], verbs: [list, watch]}
{{- end }}
{{- if $kubernetes.resources }}
- {apiGroups: [strata.ctx.sh], resources: [discoveries, collectors, relays], verbs: [list, watch]}
- {apiGroups: [strata.ctx.sh], resources: [{{ index $written .role }}], verbs: [patch]}
{{- end }}
{{- if or $kubernetes.resources $monitors }}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
{{- end }}
{{- if $values.rbac.configMaps }}
- {apiGroups: [""], resources: [configmaps], verbs: [list, watch]}
{{- end }}
{{- if $values.rbac.secrets }}
- {apiGroups: [""], resources: [secrets], verbs: [list, watch]}
{{- end }}
{{- end }}

{{/* What is kept in Strata's own namespace. In: root, role. */}}
{{- define "strata.keeps" -}}
{{- $shares := and (ne .role "relay") (or .root.Values.roles.split .root.Values.config.kubernetes.share_targets) }}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update{{ if $shares }}, list, watch, patch, delete{{ end }}]}
{{- if and (include "strata.namespaced" .root) (not (has .root.Release.Namespace .root.Values.config.kubernetes.namespaces)) }}
{{ include "strata.objects" . | trim }}
{{- end }}
{{- if and .root.Values.webhook.enabled (eq .root.Values.webhook.certificate "strata") (eq .role (include "strata.webhookRole" .root)) }}
# What is created has no name yet, so no rule can name it.
- {apiGroups: [""], resources: [secrets], verbs: [create]}
- {apiGroups: [""], resources: [secrets], resourceNames: [{{ include "strata.webhookName" .root }}], verbs: [get, watch, update]}
{{- end }}
{{- end }}
