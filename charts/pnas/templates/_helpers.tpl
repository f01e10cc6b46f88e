{{- define "pnas.labels" -}}
app.kubernetes.io/name: pnas
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The namespace's settings over the launcher's defaults: what the chart's own pods are made of. */ -}}
{{- define "pnas.settings" -}}
{{- $known := .Files.Get "files/settings.json" | fromJson }}
{{- $image := .Values.defaults.image | default (and .Values.job.enabled .Values.job.image) }}
{{- toJson (mergeOverwrite $known.defaults (deepCopy .Values.defaults) (dict "image" $image)) }}
{{- end }}

{{- /* A pod of the chart's own passes Pod Security `restricted`, as those that train do. */ -}}
{{- define "pnas.own-pod" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int64 .user }}
  runAsGroup: {{ int64 .group }}
  fsGroup: {{ int64 .group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .image_pull_secret }}
imagePullSecrets:
  {{- range kindIs "string" . | ternary (list .) . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "pnas.own-container" -}}
image: {{ .image | quote }}
imagePullPolicy: {{ .image_pull_policy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
