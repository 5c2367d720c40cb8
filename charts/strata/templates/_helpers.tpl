{{/* Names, labels, and what of the values holds for a role. A role is "strata" (everything in one pod), "collector", "relay" or "nats". */}}

{{- define "strata.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 45 characters: what is appended to it still is a label. */}}
{{- define "strata.fullname" -}}
{{- $name := include "strata.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $full | trunc 45 | trimSuffix "-" }}
{{- end }}

{{/* The name of a role's objects. In: root, role. */}}
{{- define "strata.roleName" -}}
{{- $full := include "strata.fullname" .root }}
{{- eq .role "strata" | ternary $full (printf "%s-%s" $full .role) }}
{{- end }}

{{/* The name of what is in no namespace: two releases of one name do not meet. */}}
{{- define "strata.clusterName" -}}
{{- printf "%s-%s" .root.Release.Namespace (include "strata.roleName" .) }}
{{- end }}

{{- define "strata.serviceAccount" -}}
{{- $name := .root.Values.serviceAccount.name | default (include "strata.fullname" .root) }}
{{- eq .role "strata" | ternary $name (printf "%s-%s" $name .role) }}
{{- end }}

{{- define "strata.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "strata.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "strata.selector" -}}
app.kubernetes.io/name: {{ include "strata.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* In: root, role. */}}
{{- define "strata.roleLabels" -}}
{{ include "strata.labels" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "strata.roleSelector" -}}
{{ include "strata.selector" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* A value as YAML: the role's own, or the one for all. In: root, role, key. Out: nothing where it is empty. */}}
{{- define "strata.of" -}}
{{- $own := dict }}
{{- if ne .role "strata" }}{{ $own = index .root.Values .role }}{{ end }}
{{- $value := hasKey $own .key | ternary (index $own .key) (index .root.Values .key) }}
{{- if $value }}{{ toYaml $value }}{{ end }}
{{- end }}

{{- define "strata.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The roles that are rendered, as words. */}}
{{- define "strata.roles" -}}
{{- if not .Values.roles.split }}strata{{ else if .Values.nats.external.urls }}collector relay{{ else }}collector relay nats{{ end }}
{{- end }}

{{/* Which role answers the admission webhook: the one that has standbys. */}}
{{- define "strata.webhookRole" -}}
{{- .Values.roles.split | ternary "relay" "strata" }}
{{- end }}

{{/* The port of an address like 0.0.0.0:9600 or [::]:9600. */}}
{{- define "strata.portOf" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{- define "strata.apiPort" -}}
{{- include "strata.portOf" .Values.config.server.listen }}
{{- end }}

{{/* Strata's NATS servers are pods of this release. */}}
{{- define "strata.ownNats" -}}
{{- if and .Values.roles.split (not .Values.nats.external.urls) }}true{{ end }}
{{- end }}

{{- define "strata.natsPort" -}}
{{- $feeds := .Values.config.feeds | default dict }}
{{- include "strata.portOf" ($feeds.listen | default "0.0.0.0:4222") }}
{{- end }}

{{- define "strata.natsSecret" -}}
{{- .Values.nats.tls.existingSecret | default (printf "%s-nats-tls" (include "strata.fullname" .)) }}
{{- end }}

{{- define "strata.natsTls" -}}
{{- if or .Values.nats.tls.existingSecret .Values.nats.tls.certManager.enabled }}true{{ end }}
{{- end }}

{{- define "strata.seedsSecret" -}}
{{- .Values.nats.seeds.existingSecret | default (printf "%s-seeds" (include "strata.fullname" .)) }}
{{- end }}

{{/* The names of relays that write a feed, as words. */}}
{{- define "strata.feeds" -}}
{{- $names := list }}
{{- range .Values.config.relays }}
{{- if hasKey .sink "nats" }}{{ $names = append $names .name }}{{ end }}
{{- end }}
{{- join " " $names }}
{{- end }}

{{/* Whether kubernetes.namespaces has a list: Roles there instead of a ClusterRole. */}}
{{- define "strata.namespaced" -}}
{{- if (.Values.config.kubernetes | default dict).namespaces }}true{{ end }}
{{- end }}

{{/* A Service's name as the processes of the release write it: what stands before the cluster's own domain. In: root, host. */}}
{{- define "strata.host" -}}
{{- printf "%s.%s.svc" .host .root.Release.Namespace }}
{{- end }}

{{/* The members of the NATS cluster, by name. */}}
{{- define "strata.members" -}}
{{- $name := include "strata.roleName" (dict "root" . "role" "nats") }}
{{- $hosts := list }}
{{- range until (int .Values.nats.replicas) }}
{{- $hosts = append $hosts (include "strata.host" (dict "root" $ "host" (printf "%s-%d.%s" $name . $name))) }}
{{- end }}
{{- join " " $hosts }}
{{- end }}
