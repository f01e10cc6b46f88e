{{- define "pnas.rank-table" -}}
{{- /* Written by `python -m docs.chart` from k8s/templates/rank-table.yaml.j2. */ -}}
{{- /* What MindCluster's controller fills in. It has to exist before the job, and is never applied again. */ -}}

apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ toJson $.rank_table }}
  labels: {{ toJson $.labels }}
data:
  hccl.json: '{"status":"initializing"}'
{{- end }}
