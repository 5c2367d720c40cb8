{{/* Sizes: from the configuration's words to bytes, and from bytes to a volume. */}}

{{/* Bytes of a size as the configuration writes it: 900KiB, 64MB, 1.5GiB or a plain number; units are powers of 1024. In: the text. */}}
{{- define "strata.bytes" -}}
{{- $text := kindIs "float64" . | ternary (. | printf "%.0f") (toString .) }}
{{- $number := regexFind "^[0-9.]+" $text }}
{{- $letter := regexFind "[A-Za-z]+$" $text | upper | trimSuffix "B" | trimSuffix "I" }}
{{- $powers := dict "" 0 "K" 1 "M" 2 "G" 3 "T" 4 "P" 5 }}
{{- if or (not $number) (not (hasKey $powers $letter)) }}
{{- fail (printf "'%s' is no size: write bytes or a number with its unit, like 900KiB, 64MiB or 20GiB" $text) }}
{{- end }}
{{- $bytes := float64 $number }}
{{- range until (int (index $powers $letter)) }}{{ $bytes = mulf $bytes 1024.0 }}{{ end }}
{{- printf "%.0f" $bytes }}
{{- end }}

{{/* A volume for one server's streams, in whole GiB: see `persistence.size`. Where somebody else has the streams, what is kept fits into one. */}}
{{- define "strata.volume" -}}
{{- if .Values.persistence.size }}
{{- .Values.persistence.size }}
{{- else if .Values.nats.external.urls }}1Gi
{{- else }}
{{- $least := 67108864.0 }}
{{- $wall := include "strata.bytes" (.Values.config.buffer.max_bytes | default "20GiB") | float64 }}
{{- $bytes := addf $wall (maxf (divf $wall 20) $least) (maxf (divf $wall 100) $least) $least }}
{{- range .Values.config.relays }}
{{- with .sink.nats }}{{ $bytes = addf $bytes (include "strata.bytes" .max_bytes | float64) }}{{ end }}
{{- end }}
{{- printf "%.0fGi" (ceil (divf (mulf $bytes 1.15) 1073741824.0)) }}
{{- end }}
{{- end }}

{{/* The size of one claim: that of the volume, or what the claim of a running release has, if that is more, as no volume shrinks. In: root, name. */}}
{{- define "strata.claim" -}}
{{- $wanted := include "strata.volume" .root }}
{{- $there := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name }}
{{- $size := (((($there).spec).resources).requests).storage }}
{{- if and $size (not .root.Values.persistence.size) (gt (include "strata.bytes" $size | float64) (include "strata.bytes" $wanted | float64)) }}{{ $size }}{{ else }}{{ $wanted }}{{ end }}
{{- end }}
