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

{{- /* "secret" if a variable of this name and value is one. The rules are those of trainer/shared/secrets.py. */ -}}
{{- define "pnas.looks-secret" -}}
{{- if .value }}
{{- include "pnas.secret-name" . }}
{{- include "pnas.secret-text" . }}
{{- end }}
{{- end }}

{{- define "pnas.secret-name" -}}
{{- $words := regexReplaceAll "[^A-Z]+" (regexReplaceAll "([a-z])([A-Z])" .name "${1}_${2}" | upper) "_" }}
{{- $ambiguous := and (regexMatch .patterns.ambiguous $words) (not (regexMatch .patterns.switch .value)) }}
{{- $harmless := or (regexMatch .patterns.harmless $words) (regexMatch .patterns.reference .value) }}
{{- if and .value (or $ambiguous (regexMatch .patterns.name $words)) (not $harmless) }}secret{{ end }}
{{- end }}

{{- /* "secret" if a value has one in it: a password in a URL, `--token=…`, `Authorization: …`, a known key. */ -}}
{{- define "pnas.secret-text" -}}
{{- $patterns := .patterns }}
{{- $login := and (regexMatch .patterns.proxy_login .value) (not (regexMatch .patterns.no_login .value)) }}
{{- if or $login (regexMatch .patterns.value .value) }}secret{{ end }}
{{- $pairs := list }}
{{- range regexFindAll .patterns.header .value -1 }}
{{- $pairs = append $pairs (regexSplit ":\\s+" . 2) }}
{{- end }}
{{- $parts := splitList "=" .value }}
{{- range $number, $rest := rest $parts }}
{{- $name := regexFind "[A-Za-z][\\w.-]*\\s?$" (index $parts $number) | trim }}
{{- $pairs = append $pairs (list $name (regexReplaceAll "^\\s?[\"']?([^\\s\"';&,]*)(?s:.*)$" $rest "${1}")) }}
{{- end }}
{{- range $pairs }}
{{- $usual := or (regexMatch "^(?i:keys?)?$" (index . 0)) (regexMatch $patterns.foreign_reference (index . 1)) }}
{{- if not $usual }}{{ include "pnas.secret-name" (dict "patterns" $patterns "name" (index . 0) "value" (index . 1)) }}{{ end }}
{{- end }}
{{- end }}

{{- /* Every user of the namespace can read a ConfigMap. The launcher refuses the same variables, but only later. */ -}}
{{- define "pnas.refuse-secrets" -}}
{{- $patterns := .root.Files.Get "files/secrets.json" | fromJson }}
{{- $place := .place }}
{{- $env := .settings.env | default list }}
{{- if kindIs "string" $env }}{{ $env = list $env }}{{ end }}
{{- range $key, $item := $env }}
{{- $pair := kindIs "string" $key | ternary (dict "_0" $key "_1" (toString $item)) (splitn "=" 2 (toString $item)) }}
{{- if include "pnas.looks-secret" (dict "patterns" $patterns "name" $pair._0 "value" $pair._1) }}
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
