{{- define "pnas.service" -}}
{{- /* Written by `python -m docs.chart` from k8s/templates/service.yaml.j2. */ -}}
{{- /* Names for the pods of a job of several nodes: rank 0's is the rendezvous, before anything is ready. */ -}}

apiVersion: v1
kind: Service
metadata:
  name: {{ toJson $.name }}
  labels: {{ toJson $.labels }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {pnas/job: {{ toJson $.name }}}
{{- end }}
