{{- define "pnas.volcano-job" -}}
{{- /* Written by `python -m docs.chart` from k8s/templates/volcano-job.yaml.j2. */ -}}
{{- /* A job that Volcano schedules as a gang. Everything is written that its webhook would fill in: without the webhook minAvailable would be 0, which is no gang, and the queue and the scheduler would be none. */ -}}

apiVersion: batch.volcano.sh/v1alpha1
kind: Job
metadata:
  name: {{ toJson $.name }}
  labels: {{ toJson $.labels }}
  annotations: {{ toJson $.annotations }}
spec:
  schedulerName: volcano
  queue: {{ toJson $.queue }}
  minAvailable: {{ toJson $.nodes }}
  # Runs, not restarts.
  maxRetry: {{ add (int $.retries) 1 }}
  {{- if not (kindIs "invalid" $.ttl_s) }}
  ttlSecondsAfterFinished: {{ toJson $.ttl_s }}
  {{- end }}
  {{- if not (kindIs "invalid" $.priority_class) }}
  priorityClassName: {{ toJson $.priority_class }}
  {{- end }}
  plugins:
    env: []
    # Without its NetworkPolicy, which would shut out whoever collects metrics.
    svc: [--disable-network-policy=true]
  policies:
    - {exitCode: 2, action: TerminateJob}
    - {exitCode: 6, action: TerminateJob}
    - {event: PodFailed, action: RestartJob}
    - {event: PodEvicted, action: RestartJob}
  tasks:
    - name: worker
      replicas: {{ toJson $.nodes }}
      minAvailable: {{ toJson $.nodes }}
      template:
{{- include "pnas.pod" $ | nindent 8 }}
{{- end }}
