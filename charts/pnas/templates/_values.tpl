{{- /* What launcher/manifests/render.py makes of a job's settings, as the translated templates want it. A test compares the pods. */ -}}

{{- /* A setting as people write it: read as JSON every number has a fraction, and a large one would be 2.592e+06. */ -}}
{{- define "pnas.text" -}}
{{- if kindIs "float64" . }}{{ eq (floor .) . | ternary (printf "%.0f" .) (toString .) }}
{{- else }}{{ toString . }}
{{- end }}
{{- end }}

{{- /* Seconds of `90`, `90s`, `10m`, `1h30m`. */ -}}
{{- define "pnas.seconds" -}}
{{- $text := toString . | lower | nospace }}
{{- if regexMatch "^[0-9]+$" $text }}{{ $text }}
{{- else }}
{{- $units := dict "d" 86400 "h" 3600 "m" 60 "s" 1 }}
{{- $sum := 0 }}
{{- range $part := regexFindAll "[0-9]+(d|h|min|m|s)" $text -1 }}
{{- $unit := regexFind "[dhms]" $part }}
{{- $sum = add $sum (mul (regexFind "[0-9]+" $part | int64) (get $units $unit | int64)) }}
{{- end }}{{ $sum }}
{{- end }}
{{- end }}

{{- /* Every setting of the release's job: its own before its mode's before the namespace's. */ -}}
{{- define "pnas.given" -}}
{{- $job := omit .Values.job "enabled" }}
{{- $mode := $job.mode | default .Values.defaults.mode | default "full" }}
{{- $given := dict }}
{{- range $layer := list .Values.defaults (get .Values.modes $mode | default dict) $job }}
{{- range $name, $value := $layer }}
{{- $_ := set $given $name $value }}
{{- end }}
{{- end }}
{{- toJson $given }}
{{- end }}

{{- /* Texts, however they were given: a mapping is what several KEY=VALUE are, and one text a list of one. */ -}}
{{- define "pnas.listed" -}}
{{- $texts := kindIs "string" . | ternary (list .) . }}
{{- if kindIs "map" . }}
{{- $texts = list }}
{{- range $name, $value := . }}
{{- $texts = append $texts (printf "%s=%s" $name (include "pnas.text" $value)) }}
{{- end }}
{{- end }}
{{- toJson $texts }}
{{- end }}

{{- /* The same as names and values. */ -}}
{{- define "pnas.pairs" -}}
{{- $pairs := list }}
{{- range $text := . }}
{{- $parts := splitn "=" 2 $text }}
{{- $pairs = append $pairs (dict "name" $parts._0 "value" $parts._1) }}
{{- end }}
{{- toJson $pairs }}
{{- end }}

{{- define "pnas.tolerations" -}}
{{- $found := list }}
{{- range $text := . }}
{{- $parts := splitn ":" 2 $text }}
{{- $key := splitn "=" 2 $parts._0 }}
{{- $one := dict "key" $key._0 "operator" "Exists" }}
{{- if contains "=" $parts._0 }}
{{- $one = dict "key" $key._0 "operator" "Equal" "value" $key._1 }}
{{- end }}
{{- if $parts._1 }}
{{- $_ := set $one "effect" $parts._1 }}
{{- end }}
{{- $found = append $found $one }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- /* The trainer's command line: exactly what was set. A dollar is doubled, as the kubelet would look for a variable. */ -}}
{{- define "pnas.args" -}}
{{- $args := list }}
{{- range $field := .fields }}
{{- if hasKey $.train $field }}
{{- $value := get $.train $field }}
{{- if kindIs "bool" $value }}
{{- $args = append $args (printf "--%s%s" ($value | ternary "" "no-") ($field | replace "_" "-")) }}
{{- else }}
{{- $text := kindIs "invalid" $value | ternary "none" (include "pnas.text" $value) }}
{{- $args = concat $args (list (printf "--%s" ($field | replace "_" "-")) ($text | replace "$" "$$")) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $args }}
{{- end }}

{{- /* The job's values. Its name is its content's, unless one is given: what cannot be changed is another job. */ -}}
{{- define "pnas.values" -}}
{{- $unnamed := include "pnas.named-values" (dict "root" . "name" "unnamed" "content" "") | fromJson }}
{{- /* Not by the chart's version nor the namespace: a new chart alone would end the job. What MindCluster's scheduler
       goes by is the job's own. */ -}}
{{- $annotations := pick $unnamed.annotations "huawei.com/schedule_policy" }}
{{- $bare := mergeOverwrite (omit $unnamed "labels" "annotations") (dict "labels" dict "annotations" $annotations) }}
{{- $content := include (eq $unnamed.backend "batch" | ternary "pnas.job" "pnas.volcano-job") $bare | sha256sum | trunc 8 }}
{{- /* As a job can be named, and no longer than 40 with its content. */ -}}
{{- $release := .Release.Name | replace "." "-" | trunc 29 | trimSuffix "-" }}
{{- $name := printf "%s%s-%s" (regexMatch "^[a-z]" $release | ternary "" "r-") $release $content }}
{{- $given := include "pnas.given" . | fromJson }}
{{- include "pnas.named-values" (dict "root" . "name" ($given.name | default $name) "content" $content) }}
{{- end }}

{{- define "pnas.named-values" -}}
{{- $name := .name }}
{{- $content := .content }}
{{- with .root }}
{{- $known := .Files.Get "files/settings.json" | fromJson }}
{{- $given := include "pnas.given" . | fromJson }}
{{- $s := mergeOverwrite (deepCopy $known.defaults) (dict "data_claim" .Values.claims.data.name "output_claim" .Values.claims.output.name) }}
{{- if .Values.queue.create }}
{{- $_ := set $s "queue" .Values.queue.name }}
{{- end }}
{{- range $name, $value := $given }}
{{- /* Helm takes a null for nothing at all. */ -}}
{{- $_ := set $s $name (and (has $name $known.nullable) (eq (toString $value) "none") | ternary nil $value) }}
{{- end }}
{{- range $name := $known.listed }}
{{- $_ := set $s $name (include "pnas.listed" (get $s $name) | fromJsonArray) }}
{{- end }}
{{- range $name := list "cpu" "memory" "ttl" "deadline" }}
{{- $value := get $s $name }}
{{- $_ := set $s $name (kindIs "invalid" $value | ternary nil (include "pnas.text" $value)) }}
{{- end }}
{{- $npus := $s.npus | default 1 | int }}
{{- $nodes := int $s.nodes }}
{{- $cpu := eq $s.device "cpu" }}
{{- $preset := dict }}
{{- if and $s.hardware (not $cpu) }}
{{- $preset = get $known.hardware $s.hardware }}
{{- end }}
{{- $counts := $known.counts }}
{{- $subject := "a pod" }}
{{- $advice := "for more, set job.nodes, and for other servers job.hardware" }}
{{- if $preset }}
{{- $counts = gt $nodes 1 | ternary $preset.several_nodes $preset.one_node }}
{{- $subject = printf "on %s a pod%s" $s.hardware (gt $nodes 1 | ternary " of a job with several nodes" "") }}
{{- $advice = "for more, set job.nodes" }}
{{- end }}
{{- if not (has (float64 $npus) $counts) }}
{{- fail (printf "job.npus %d: %s has %s NPUs; %s" $npus $subject (join ", " $counts) $advice) }}
{{- end }}
{{- if and $preset (not (hasKey $given "resource")) }}
{{- $_ := set $s "resource" $preset.resource }}
{{- end }}
{{- if not $s.image }}
{{- fail "job.image (or defaults.image) is missing: the image that holds the trainer, like registry.example/pnas:0.1.0" }}
{{- end }}
{{- if not (regexMatch "^/output(/|$)" ($given.output | default "/output")) }}
{{- fail (printf "job.output %s: pods keep nothing but what is below /output, the output claim" $given.output) }}
{{- end }}
{{- $backend := $s.backend }}
{{- if eq $backend "auto" }}
{{- $backend = .Capabilities.APIVersions.Has "batch.volcano.sh/v1alpha1" | ternary "volcano" "batch" }}
{{- end }}
{{- if and (eq $backend "volcano") $s.deadline }}
{{- fail (printf "job.deadline %v: Volcano Jobs have none; leave it out, or set job.backend batch" $s.deadline) }}
{{- end }}
{{- /* One of the namespace's defaults is for its Volcano Jobs. */ -}}
{{- if and (eq $backend "batch") (hasKey .Values.job "queue") }}
{{- fail (printf "job.queue %s: Kubernetes Jobs have no queue; leave it out, or set job.backend volcano" .Values.job.queue) }}
{{- end }}
{{- if and (has $s.mode (list "finetune" "eval")) (not $s.weights) (not $s.resume) }}
{{- fail (printf "job.mode %s needs job.weights, the file to start from" $s.mode) }}
{{- end }}
{{- if and (eq $backend "batch") (eq $s.mindcluster "on") }}
{{- fail "job.mindcluster on: MindCluster writes no rank table for a Kubernetes Job; leave it out, or set job.backend volcano" }}
{{- end }}
{{- $table := eq $s.mindcluster "auto" | ternary (and (eq $backend "volcano") (not $cpu)) (eq $s.mindcluster "on") }}
{{- $ring := $table | ternary (dict "ring-controller.atlas" ($preset.chips | default $known.chips)) dict }}
{{- /* Who has MindCluster write no rank table has its scheduler choose no NPUs either. */ -}}
{{- $scheduled := and $table (not (empty $preset)) }}
{{- $policy := $scheduled | ternary (dict "huawei.com/schedule_policy" $preset.schedule_policy) dict }}
{{- $resources := $cpu | ternary dict (dict $s.resource (toString $npus)) }}
{{- range $kind := list "cpu" "memory" }}
{{- if get $s $kind }}
{{- $_ := set $resources $kind (get $s $kind) }}
{{- end }}
{{- end }}
{{- $train := dict }}
{{- range $field := $known.fields }}
{{- if hasKey $given $field }}
{{- $_ := set $train $field (get $s $field) }}
{{- end }}
{{- end }}
{{- $_ := set $train "npus" $npus }}
{{- if gt $nodes 1 }}
{{- $_ := set $train "nodes" $nodes }}
{{- end }}
{{- $_ := set $train "output" ($given.output | default "/output") }}
{{- $_ := set $train "resume" ($s.resume | default "auto") }}
{{- $_ := set $train "run_name" $name }}
{{- $env := list }}
{{- range $pair := include "pnas.pairs" $s.env | fromJsonArray }}
{{- $env = append $env (dict "name" $pair.name "value" ($pair.value | replace "$" "$$")) }}
{{- end }}
{{- $selector := dict }}
{{- range $pair := include "pnas.pairs" $s.node_selector | fromJsonArray }}
{{- $_ := set $selector $pair.name $pair.value }}
{{- end }}
{{- range $name, $value := $preset.node_labels }}
{{- if not (hasKey $selector $name) }}
{{- $_ := set $selector $name $value }}
{{- $_ := set $s "node_selector" (prepend $s.node_selector (printf "%s=%s" $name $value)) }}
{{- end }}
{{- end }}
{{- $labels := merge (include "pnas.labels" . | fromYaml) (dict "pnas/job" $name) $ring }}
{{- $runs := printf "%s, %s at %d px, %s %s" $s.mode $s.model (int $s.image_size) (gt $nodes 1 | ternary (printf "%d x %d" $nodes $npus) (toString $npus)) $s.resource }}
{{- $follow := printf "python -m launcher logs %s --follow --namespace %s" $name .Release.Namespace }}
{{- $spec := dict "name" $name "backend" $backend "train" (merge (deepCopy $train) (dict "mode" $s.mode "model" $s.model "image_size" $s.image_size "grace_s" $s.grace_s)) "pods" dict }}
{{- /* For who lets it go on by the launcher. */ -}}
{{- range $name := $known.pods }}
{{- $_ := set $spec.pods $name (get $s $name) }}
{{- end }}
{{- if not $preset }}
{{- $_ := unset $spec.pods "hardware" }}
{{- end }}
{{- $values := dict
  "backend" $backend
  "name" $name
  "labels" $labels
  "pod_labels" (merge (dict "app.kubernetes.io/name" "pnas" "app.kubernetes.io/managed-by" .Release.Service "pnas/job" $name) $ring)
  "annotations" (merge $policy (dict "pnas/runs" $runs "pnas/follow" $follow "pnas/attempt" "1" "pnas/content" $content "pnas/spec" (toJson $spec)))
  "nodes" $nodes
  "args" (include "pnas.args" (dict "fields" $known.fields "train" $train) | fromJsonArray)
  "index_annotation" (get $known.index $backend)
  "master_address" (printf "%s%s-0.%s" $name (eq $backend "batch" | ternary "" "-worker") $name)
  "subdomain" (and (eq $backend "batch") (gt $nodes 1) | ternary $name nil)
  "rank_table" ($table | ternary (printf "rings-config-%s" $name) nil)
  "npus" $npus
  "resource" ($cpu | ternary "" $s.resource)
  "host_driver" (eq $s.driver "host")
  "visible_devices" ($scheduled | ternary (printf "metadata.annotations['%s']" $s.resource) nil)
  "grace_period_s" (add (ceil $s.grace_s | int) 15)
  "resources" $resources
  "env" $env
  "env_secrets" $s.env_from_secret
  "pull_secrets" $s.image_pull_secret
  "node_selector" $selector
  "tolerations" (include "pnas.tolerations" $s.toleration | fromJsonArray)
}}
{{- range $name, $value := dict "ttl_s" $s.ttl "deadline_s" $s.deadline }}
{{- $_ := set $values $name (kindIs "invalid" $value | ternary nil (include "pnas.seconds" $value | int64)) }}
{{- end }}
{{- range $name := list "queue" "priority_class" "retries" "image" "image_pull_policy" "data_claim" "output_claim" "shm" "scratch" "user" "group" }}
{{- $_ := set $values $name (get $s $name) }}
{{- end }}
{{- toJson $values }}
{{- end }}
{{- end }}
