{{- define "pnas.job" -}}
{{- /* Written by `python -m docs.chart` from k8s/templates/job.yaml.j2. */ -}}
{{- /* A job of Kubernetes itself: no gang, and no queue. Several nodes find each other by the headless service. */ -}}

apiVersion: batch/v1
kind: Job
metadata:
  name: {{ toJson $.name }}
  labels: {{ toJson $.labels }}
  annotations: {{ toJson $.annotations }}
spec:
  completions: {{ toJson $.nodes }}
  parallelism: {{ toJson $.nodes }}
  {{- if gt (int $.nodes) 1 }}
  completionMode: Indexed
  {{- end }}
  # Pods are counted: one that fails takes its peers along.
  backoffLimit: {{ mul (int $.retries) (int $.nodes) }}
  {{- if not (kindIs "invalid" $.ttl_s) }}
  ttlSecondsAfterFinished: {{ toJson $.ttl_s }}
  {{- end }}
  {{- if not (kindIs "invalid" $.deadline_s) }}
  activeDeadlineSeconds: {{ toJson $.deadline_s }}
  {{- end }}
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
      # Usage, and a folder that is taken: a retry would end the same way.
      - {action: FailJob, onExitCodes: {containerName: trainer, operator: In, values: [2, 6]}}
      # Preempted, drained, evicted; or stopped with its state saved: no failure of the job's.
      - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
      - {action: Ignore, onExitCodes: {containerName: trainer, operator: In, values: [75]}}
  template:
{{- include "pnas.pod" $ | nindent 4 }}
{{- end }}
