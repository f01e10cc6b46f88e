// Package volcano names the types whose definitions are generated, so that go.mod pins their module.
package volcano

import (
	_ "volcano.sh/apis/pkg/apis/batch/v1alpha1"
	_ "volcano.sh/apis/pkg/apis/bus/v1alpha1"
	_ "volcano.sh/apis/pkg/apis/scheduling/v1beta1"
)
