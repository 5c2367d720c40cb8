{{/* strata.yaml: `config` of the values, and what follows from the others. One file for all roles. */}}
{{- define "strata.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $buffer := $config.buffer }}
{{- $_ := set $buffer "data_dir" "/var/lib/strata" }}
{{- with $config.kubernetes }}
{{- /* A pod per node has its node's targets already: shared out they would go to pods that do not see them. */}}
{{- if and $.Values.roles.split (eq $.Values.collector.kind "Deployment") }}{{ $_ := set . "share_targets" true }}{{ end }}
{{- if and $.Values.webhook.enabled (not $.Values.roles.split) }}{{ $_ := set . "webhook" (include "strata.webhook" $ | fromYaml) }}{{ end }}
{{- end }}
{{- if .Values.nats.external.urls }}
{{- $_ := set $buffer "nats" (include "strata.externalNats" . | fromYaml) }}
{{- $_ := set $buffer "replicas" .Values.nats.external.replicas }}
{{- else if .Values.roles.split }}
{{- $_ := set $buffer "nats" (include "strata.splitNats" . | fromYaml) }}
{{- $_ := set $buffer "replicas" .Values.nats.replicas }}
{{- $feeds := $config.feeds | default dict }}
{{- $_ := set $feeds "listen" ($feeds.listen | default "0.0.0.0:4222") }}
{{- if include "strata.natsTls" . }}{{ $_ := set $feeds "tls" (dict "cert_file" "/run/strata/tls/tls.crt" "key_file" "/run/strata/tls/tls.key") }}{{ end }}
{{- $_ := set $config "feeds" $feeds }}
{{- end }}
{{- if and .Values.roles.split (eq .Values.collector.kind "DaemonSet") }}
{{- range $config.scrape_configs }}
{{- if hasKey . "kubernetes_annotations" }}
{{- $annotations := .kubernetes_annotations | default dict }}
{{- $_ := set $annotations "node" ($annotations.node | default "${NODE_NAME}") }}
{{- $_ := set . "kubernetes_annotations" $annotations }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* buffer.nats of pods that find the servers of this release. */}}
{{- define "strata.splitNats" -}}
{{- $tls := include "strata.natsTls" . }}
{{- $port := include "strata.natsPort" . }}
urls:
  {{- range splitList " " (include "strata.members" .) }}
  - {{ printf "%s://%s:%s" (empty $tls | ternary "nats" "tls") . $port }}
  {{- end }}
seeds_dir: /run/strata/seeds
{{- if $tls }}
tls: {ca_file: /run/strata/tls/ca.crt}
{{- end }}
{{- if gt (int .Values.nats.replicas) 1 }}
cluster:
  peers:
    {{- range splitList " " (include "strata.members" .) }}
    - {{ . }}:6222
    {{- end }}
  listen: {{ regexReplaceAll "[0-9]+$" ((.Values.config.feeds | default dict).listen | default "0.0.0.0:4222") "6222" | quote }}
  {{- if $tls }}
  tls: {ca_file: /run/strata/tls/ca.crt, cert_file: /run/strata/tls/tls.crt, key_file: /run/strata/tls/tls.key}
  {{- else }}
  plaintext: true
  {{- end }}
{{- end }}
{{- end }}

{{/* buffer.nats of servers that somebody else runs. */}}
{{- define "strata.externalNats" -}}
{{- with .Values.nats.external }}
{{- $nats := deepCopy .options }}
{{- $_ := set $nats "urls" .urls }}
{{- if .existingSecret }}
{{- if eq .signIn "credentials" }}{{ $_ := set $nats "credentials_file" "/run/strata/nats/strata.creds" }}
{{- else if eq .signIn "password" }}{{ $_ := set $nats "user" .user }}{{ $_ := set $nats "password_file" "/run/strata/nats/password" }}
{{- else }}{{ $_ := set $nats (printf "%s_file" .signIn) (printf "/run/strata/nats/%s" .signIn) }}
{{- end }}
{{- end }}
{{- toYaml $nats }}
{{- end }}
{{- end }}

{{- define "strata.webhook" -}}
listen: {{ regexReplaceAll "[0-9]+$" .Values.config.server.listen (toString .Values.webhook.port) | quote }}
service: {{ include "strata.webhookName" . }}
{{- if eq .Values.webhook.certificate "strata" }}
secret: {{ include "strata.webhookName" . }}
configuration: {{ include "strata.webhookConfiguration" . }}
{{- else }}
cert_file: /run/strata/webhook/tls.crt
key_file: /run/strata/webhook/tls.key
{{- end }}
{{- end }}

{{- define "strata.webhookName" -}}
{{- printf "%s-webhook" (include "strata.fullname" .) }}
{{- end }}

{{- define "strata.webhookConfiguration" -}}
{{- printf "%s-%s" .Release.Namespace (include "strata.fullname" .) }}
{{- end }}

{{/* What a running process does not take over: where it changes, pods are rolled. In: root, role. */}}
{{- define "strata.restart" -}}
{{- $config := include "strata.config" .root | fromYaml }}
{{- $feeds := "" }}
{{- if eq .role "nats" }}{{ $feeds = include "strata.feeds" .root }}{{ end }}
{{- list (omit $config.buffer "max_bytes" "memory" "linger" "replay_window") $config.server $config.feeds $config.kubernetes $feeds | toJson | sha256sum }}
{{- end }}
