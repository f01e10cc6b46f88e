{{- /* What would only be found out when pods wait: stopped before anything is made, in one line that names the value.
       `helm template` has no cluster to look at, and finds nothing. */ -}}

{{- /* What the launcher refuses of settings, and no schema can say. They stand below the value `where`. */ -}}
{{- define "pnas.check-settings" -}}
{{- $known := .root.Files.Get "files/settings.json" | fromJson }}
{{- range $name := $known.listed }}
{{- $names := list }}
{{- range $pair := include "pnas.listed" (get $.settings $name | default list) | fromJsonArray | include "pnas.pairs" | fromJsonArray }}
{{- $field := printf "%s.%s %s" $.where $name $pair.name }}
{{- if has $pair.name $names }}
{{- fail (printf "%s: it is given twice" $field) }}
{{- end }}
{{- $names = append $names $pair.name }}
{{- if eq $name "env" }}
{{- if has $pair.name $known.own_variables }}
{{- fail (printf "%s: it is set in every pod; leave it out" $field) }}
{{- end }}
{{- if include "pnas.looks-secret" (dict "pair" $pair "secret" $known.secret) }}
{{- fail (printf "%s: it looks like a secret, which anybody could read in the job: use %s.env_from_secret" $field $.where) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name := list "cpu" "memory" "shm" "scratch" }}
{{- $text := get $.settings $name | include "pnas.text" }}
{{- if not (has $text (list "" "none")) }}
{{- $size := include "pnas.quantity" (dict "text" $text "suffixes" $known.suffixes) | float64 }}
{{- if eq $size 0.0 }}
{{- fail (printf "%s.%s %s: must be more than 0, like 16, 500m or 64Gi" $.where $name $text) }}
{{- else if and (ne $name "cpu") (lt $size 1048576.0) }}
{{- fail (printf "%s.%s %s: is less than a MiB; write memory like 512Mi or 64Gi" $.where $name $text) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A variable as people call secrets, or with a value as services make them: as launcher/settings/secrets.py has it. */ -}}
{{- define "pnas.looks-secret" -}}
{{- $words := regexSplit "[_0-9]+" (regexReplaceAll "([a-z])([A-Z])" .pair.name "${1}_${2}" | upper) -1 }}
{{- $named := false }}
{{- range $word := $words }}
{{- $named = or $named (regexMatch (printf "^(%s)$" $.secret.word) $word) }}
{{- end }}
{{- $named = and $named (not (has (last $words) .secret.about)) (not (has .pair.name .secret.harmless)) }}
{{- if and .pair.value (or $named (regexMatch (printf "^(%s)" .secret.value) .pair.value)) }}yes{{ end }}
{{- end }}

{{- /* The value of a quantity as Kubernetes writes them. */ -}}
{{- define "pnas.quantity" -}}
{{- $number := regexFind "^[+]?[0-9.]+([eE][+-]?[0-9]+)?" .text }}
{{- mulf (float64 $number) (get .suffixes (trimPrefix $number .text) | default 1.0) }}
{{- end }}

{{- /* Whether there is a namespace to look into: each has this account. */ -}}
{{- define "pnas.is-live" -}}
{{- if lookup "v1" "ServiceAccount" .Release.Namespace "default" }}yes{{ end }}
{{- end }}

{{- /* Both claims: there, and for a job's pods bound, and such that they can share them. */ -}}
{{- define "pnas.check-claims" -}}
{{- $root := .root }}
{{- $nodes := int .nodes }}
{{- $modes := ($root.Files.Get "files/settings.json" | fromJson).access_modes }}
{{- $where := $root.Release.Namespace }}
{{- $is_live := include "pnas.is-live" $root }}
{{- range $use := list "data" "output" }}
{{- $claim := get $root.Values.claims $use }}
{{- $field := printf "claims.%s.name %s" $use $claim.name }}
{{- $found := lookup "v1" "PersistentVolumeClaim" $where $claim.name }}
{{- if and $is_live (not $found) (not $claim.create) }}
{{- fail (printf "%s: there is no such claim in namespace %s: make it, or set claims.%s.create" $field $where $use) }}
{{- end }}
{{- if gt $nodes 0 }}
{{- $has := $claim.accessModes }}
{{- if $found }}
{{- $has = $found.spec.accessModes }}
{{- $phase := dig "status" "phase" "Pending" $found }}
{{- $waits := hasKey ($found.metadata.annotations | default dict) "volume.kubernetes.io/selected-node" }}
{{- $said := "" }}
{{- if eq $phase "Pending" }}
{{- range $event := (lookup "v1" "Event" $where "").items }}
{{- if eq (toString $event.involvedObject.uid) $found.metadata.uid }}
{{- $waits = or $waits (has $event.reason (list "WaitForFirstConsumer" "WaitForPodScheduled")) }}
{{- $said = printf " (%s)" $event.message }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (or (eq $phase "Bound") (and (eq $phase "Pending") $waits)) }}
{{- fail (printf "%s: it is %s, not bound%s: see `kubectl describe pvc %s --namespace %s`" $field $phase $said $claim.name $where) }}
{{- end }}
{{- end }}
{{- $wanted := get (get $modes $use) (gt $nodes 1 | ternary "shared" "alone") }}
{{- $fits := false }}
{{- range $mode := $has }}
{{- $fits = or $fits (has $mode $wanted) }}
{{- end }}
{{- if not $fits }}
{{- $why := gt $nodes 1 | ternary (printf "as the pods of job.nodes %d share it" $nodes) "as runs write there" }}
{{- fail (printf "claims.%s.accessModes: the claim %s has %s alone, and needs %s, %s" $use $claim.name (join ", " $has) (join " or " $wanted) $why) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* One of the nodes that the job may have has so many NPUs; none of them at all may be yet to come. */ -}}
{{- define "pnas.check-nodes" -}}
{{- $most := 0 }}
{{- range $node := (lookup "v1" "Node" "" "").items }}
{{- $chosen := true }}
{{- range $name, $value := $.node_selector }}
{{- $chosen = and $chosen (eq (get ($node.metadata.labels | default dict) $name) $value) }}
{{- end }}
{{- if $chosen }}
{{- $most = max $most (get $node.status.capacity $.resource | default 0 | int) }}
{{- end }}
{{- end }}
{{- if and (gt $most 0) (gt (int $.npus) $most) }}
{{- fail (printf "job.npus %d: no node that the job may have has more than %d %s: ask for fewer, and set job.nodes" (int $.npus) $most $.resource) }}
{{- end }}
{{- end }}

{{- /* A Volcano Job's queue: without it the job would be refused when half of the release is there. */ -}}
{{- define "pnas.check-queue" -}}
{{- $queue := .values.queue }}
{{- if and (include "pnas.is-live" .root) (not (lookup "scheduling.volcano.sh/v1beta1" "Queue" "" $queue)) }}
{{- if and .root.Values.queue.create (eq $queue .root.Values.queue.name) }}
{{- fail (printf "queue.create: the queue %s must be there before the job: install without job.enabled, then upgrade with it" $queue) }}
{{- end }}
{{- fail (printf "job.queue %s: there is no such queue: see `kubectl get queues`" $queue) }}
{{- end }}
{{- end }}

{{- /* The job of this name on the cluster, as JSON; nothing if there is none. */ -}}
{{- define "pnas.found-job" -}}
{{- $kind := eq .values.backend "batch" | ternary "batch/v1" "batch.volcano.sh/v1alpha1" }}
{{- with lookup $kind "Job" .root.Release.Namespace .values.name }}
{{- toJson . }}
{{- end }}
{{- end }}

{{- /* A job's pods cannot be changed: one of this name that has others is not this one. */ -}}
{{- define "pnas.check-name" -}}
{{- with include "pnas.found-job" . | default "{}" | fromJson }}
{{- if ne (dig "metadata" "annotations" "pnas/content" "" .) (get $.values.annotations "pnas/content") }}
{{- fail (printf "job.name %s: there is such a job, with other settings, and a job's pods cannot be changed: choose another name, or leave it out" $.values.name) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A rank table whose job has gone, as one does whose ttl is over: MindCluster takes it for the next job's. Helm 4 would
       not write over it. */ -}}
{{- define "pnas.refuse-table" -}}
{{- fail (printf "job.name: the job has gone, but its rank table is there, and the next of this name would take it for its own: remove it, by `kubectl delete configmap %s --namespace %s`, or choose another name" .metadata.name .metadata.namespace) }}
{{- end }}
