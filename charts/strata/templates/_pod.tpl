{{/* One pod of a role. In: root, role. */}}
{{- define "strata.pod" -}}
{{- $root := .root }}
{{- $role := .role }}
{{- $values := .root.Values }}
{{- $webhook := and $values.webhook.enabled (eq $role (include "strata.webhookRole" $root)) }}
{{- $scheme := empty $values.config.server.tls | ternary "HTTP" "HTTPS" }}
metadata:
  labels:
    {{- include "strata.roleSelector" . | nindent 4 }}
    {{- with $values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with include "strata.of" (dict "root" $root "role" $role "key" "podLabels") }}
    {{- . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/restart: {{ include "strata.restart" . }}
    {{- if $values.metrics.annotate }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ include "strata.apiPort" $root | quote }}
    {{- if $values.config.server.tls }}
    prometheus.io/scheme: https
    {{- end }}
    {{- end }}
    {{- with include "strata.of" (dict "root" $root "role" $role "key" "podAnnotations") }}
    {{- . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "strata.serviceAccount" . }}
  automountServiceAccountToken: {{ and (ne $role "nats") (not (empty $values.config.kubernetes)) }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- if $values.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- range $key := list "nodeSelector" "affinity" "tolerations" "priorityClassName" }}
  {{- with include "strata.of" (dict "root" $root "role" $role "key" $key) }}
  {{ $key }}:
    {{- . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with include "strata.spread" . | trim }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: strata
      image: {{ include "strata.image" $root | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [{{ eq $role "strata" | ternary "run" $role }}]
      env:
        {{- include "strata.env" . | nindent 8 }}
      {{- with $values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: {{ include "strata.apiPort" $root }}}
        {{- if or (eq $role "nats") (and (eq $role "strata") (($values.config.feeds).listen)) }}
        - {name: nats, containerPort: {{ include "strata.natsPort" $root }}}
        {{- end }}
        {{- if and (eq $role "nats") (gt (int $values.nats.replicas) 1) }}
        - {name: cluster, containerPort: 6222}
        {{- end }}
        {{- if $webhook }}
        - {name: webhook, containerPort: {{ $values.webhook.port }}}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        {{- toYaml $values.startupProbe | nindent 8 }}
      livenessProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        {{- toYaml $values.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
        {{- toYaml $values.readinessProbe | nindent 8 }}
      {{- with include "strata.of" (dict "root" $root "role" $role "key" "resources") }}
      resources:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with $values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        # The whole folder: a file mounted by subPath would never change.
        - {name: config, mountPath: /etc/strata, readOnly: true}
        - {name: data, mountPath: /var/lib/strata}
        {{- if include "strata.ownNats" $root }}
        - {name: seeds, mountPath: /run/strata/seeds, readOnly: true}
        {{- if include "strata.natsTls" $root }}
        - {name: tls, mountPath: /run/strata/tls, readOnly: true}
        {{- end }}
        {{- end }}
        {{- if $values.nats.external.existingSecret }}
        - {name: nats, mountPath: /run/strata/nats, readOnly: true}
        {{- end }}
        {{- if and $webhook (eq $values.webhook.certificate "cert-manager") }}
        - {name: webhook, mountPath: /run/strata/webhook, readOnly: true}
        {{- end }}
        {{- with include "strata.of" (dict "root" $root "role" $role "key" "extraVolumeMounts") }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: config, configMap: {name: {{ include "strata.fullname" $root }}}}
    {{- with include "strata.data" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if include "strata.ownNats" $root }}
    {{- include "strata.secrets" . | trim | nindent 4 }}
    {{- end }}
    {{- with $values.nats.external.existingSecret }}
    - {name: nats, secret: {secretName: {{ . }}, defaultMode: 0440}}
    {{- end }}
    {{- if and $webhook (eq $values.webhook.certificate "cert-manager") }}
    - {name: webhook, secret: {secretName: {{ include "strata.webhookName" $root }}, defaultMode: 0440}}
    {{- end }}
    {{- with include "strata.of" (dict "root" $root "role" $role "key" "extraVolumes") }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The data folder; that of NATS pods with a volume is a claim of their StatefulSet. */}}
{{- define "strata.data" -}}
{{- $persists := and .root.Values.persistence.enabled (has .role (list "strata" "nats")) }}
{{- if not $persists }}
- {name: data, emptyDir: {}}
{{- else if eq .role "strata" }}
- {name: data, persistentVolumeClaim: {claimName: {{ .root.Values.persistence.existingClaim | default (printf "%s-data" (include "strata.fullname" .root)) }}}}
{{- end }}
{{- end }}

{{/* Each process gets the seeds of its role and no others. */}}
{{- define "strata.secrets" -}}
{{- $names := dict "collector" (list "collector") "relay" (list "control" "relay") }}
- name: seeds
  secret:
    secretName: {{ include "strata.seedsSecret" .root }}
    defaultMode: 0440
    {{- if ne .role "nats" }}
    items:
      {{- range index $names .role }}
      - {key: {{ . }}.seed, path: {{ . }}.seed}
      {{- end }}
      {{- if eq .role "relay" }}
      {{- range splitList " " (include "strata.feeds" .root) | compact }}
      - {key: feed-{{ . }}.seed, path: feed-{{ . }}.seed}
      {{- end }}
      {{- end }}
    {{- end }}
{{- if include "strata.natsTls" .root }}
- name: tls
  secret:
    secretName: {{ include "strata.natsSecret" .root }}
    defaultMode: 0440
    {{- if ne .role "nats" }}
    items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
{{- end }}
{{- end }}

{{/* STRATA_CONFIG also makes `kubectl exec … -- strata top` find the process. */}}
{{- define "strata.env" -}}
- {name: STRATA_CONFIG, value: /etc/strata/strata.yaml}
- {name: STRATA_LOG, value: {{ .root.Values.log }}}
- {name: STRATA_LOG_LEVEL, value: {{ .root.Values.logLevel | quote }}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- if and .root.Values.roles.split .root.Values.webhook.enabled (eq .role (include "strata.webhookRole" .root)) }}
{{- range $key, $value := include "strata.webhook" .root | fromYaml }}
- {name: STRATA_KUBERNETES__WEBHOOK__{{ upper $key }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- range $key, $name := dict "http" "HTTP_PROXY" "https" "HTTPS_PROXY" "except" "NO_PROXY" }}
{{- with index $.root.Values.proxy $key }}
- {name: {{ $name }}, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with include "strata.of" (dict "root" .root "role" .role "key" "extraEnv") }}
{{ . }}
{{- end }}
{{- end }}

{{/* Pods of a role with several: over nodes and zones. */}}
{{- define "strata.spread" -}}
{{- $own := include "strata.of" (dict "root" .root "role" .role "key" "topologySpreadConstraints") }}
{{- $isSpread := or (has .role (list "relay" "nats")) (and (eq .role "collector") (eq .root.Values.collector.kind "Deployment")) }}
{{- if $own }}
{{- $own }}
{{- else if $isSpread }}
{{- $unsatisfiable := eq .role "nats" | ternary .root.Values.nats.spread "ScheduleAnyway" }}
{{- range $key, $when := dict "kubernetes.io/hostname" $unsatisfiable "topology.kubernetes.io/zone" "ScheduleAnyway" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: {{ $when }}
  labelSelector:
    matchLabels:
      {{- include "strata.roleSelector" (dict "root" $.root "role" $.role) | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
