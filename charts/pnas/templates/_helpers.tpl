{{- define "pnas.labels" -}}
app.kubernetes.io/name: pnas
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The labels of a part with pods: with another name, because the launcher finds its jobs by the name `pnas`. */ -}}
{{- define "pnas.part-labels" -}}
{{- $part := dict "app.kubernetes.io/name" (printf "pnas-%s" .part) }}
{{- mergeOverwrite (include "pnas.labels" .root | fromYaml) $part | toYaml }}
{{- end }}

{{- /* What the chart's own pods need of the settings: the job's, if the release has a job, or the namespace's defaults. */ -}}
{{- define "pnas.settings" -}}
{{- $settings := dict "image_pull_policy" "IfNotPresent" "user" 1000 "group" 1000 "grace_s" 30 }}
{{- $layers := list .Values.defaults }}
{{- if .Values.job.enabled }}
{{- $layers = append $layers (get .Values.modes (.Values.job.mode | default "full") | default dict) }}
{{- $layers = append $layers .Values.job }}
{{- end }}
{{- range $layers }}
{{- $_ := mergeOverwrite $settings (pick . "image" "image_pull_policy" "image_pull_secret" "user" "group" "grace_s") }}
{{- end }}
{{- toJson $settings }}
{{- end }}

{{- define "pnas.volcano" -}}
{{- if .Capabilities.APIVersions.Has "batch.volcano.sh/v1alpha1" }}served{{ end }}
{{- end }}

{{- /* Not empty if the Role has rights on Volcano's objects. */ -}}
{{- define "pnas.volcano-rights" -}}
{{- with .Values.rbac.volcano }}{{ eq (toString .) "auto" | ternary (include "pnas.volcano" $) "granted" }}{{ end }}
{{- end }}

{{- /* Every user of the namespace can read a ConfigMap. The launcher refuses the same variables, but only later. */ -}}
{{- define "pnas.refuse-secrets" -}}
{{- $patterns := .root.Files.Get "files/secrets.json" | fromJson }}
{{- $place := .place }}
{{- $env := .settings.env | default list }}
{{- if kindIs "string" $env }}{{ $env = list $env }}{{ end }}
{{- range $key, $item := $env }}
{{- $pair := kindIs "string" $key | ternary (dict "_0" $key "_1" (toString $item)) (splitn "=" 2 (toString $item)) }}
{{- $words := regexReplaceAll "[^A-Z]+" (snakecase $pair._0 | upper) "_" }}
{{- $ambiguous := and (regexMatch $patterns.ambiguous $words) (not (regexMatch $patterns.switch $pair._1)) }}
{{- $named := and (or $ambiguous (regexMatch $patterns.name $words)) (not (regexMatch $patterns.harmless $words)) }}
{{- if and $pair._1 (or $named (regexMatch $patterns.value $pair._1)) }}
{{- fail (printf "%s.env: %s looks like a secret, which every user could read in a ConfigMap: use env_from_secret" $place $pair._0) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Like the pods that train, the chart's own pods pass Pod Security `restricted`. */ -}}
{{- define "pnas.own-pod" -}}
{{- with include "pnas.settings" . | fromJson -}}
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
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.placement.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pnas.own-container" -}}
{{- with include "pnas.settings" . | fromJson -}}
image: {{ .image | quote }}
imagePullPolicy: {{ .image_pull_policy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
{{- end }}

{{- /* A pod that runs the launcher as the chart's account, with the words of `args`. */ -}}
{{- define "pnas.launcher-pod" -}}
restartPolicy: Never
serviceAccountName: {{ .root.Values.serviceAccount.name | quote }}
automountServiceAccountToken: true
{{ include "pnas.own-pod" .root }}
containers:
  - name: launcher
    {{- include "pnas.own-container" .root | nindent 4 }}
    # No command: the image's entry point runs it.
    args: {{ concat (list "python" "-m" "launcher") .args | toJson }}
    workingDir: /home/pnas
    env:
      - {name: HOME, value: /home/pnas}
    resources:
      requests: {cpu: 100m, memory: 256Mi}
      limits: {memory: 1Gi}
    # `kubectl describe pod` shows the launcher's message.
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - {name: home, mountPath: /home/pnas}
      {{- with .profile }}
      - {name: profile, mountPath: /etc/pnas, readOnly: true}
      {{- end }}
volumes:
  - {name: home, emptyDir: {sizeLimit: 64Mi}}
  {{- with .profile }}
  - {name: profile, configMap: {name: {{ . | quote }}}}
  {{- end }}
{{- end }}
