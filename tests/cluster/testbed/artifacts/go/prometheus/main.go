// The checks of `promtool check metrics`: it reads a scrape from standard input and prints the linter's findings.
package main

import (
	"fmt"
	"os"

	// Only for its module, which has the definition of a PodMonitor.
	_ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func main() {
	problems, err := promlint.New(os.Stdin).Lint()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error while linting:", err)
		os.Exit(1)
	}
	for _, problem := range problems {
		fmt.Println(problem.Metric, problem.Text)
	}
	if len(problems) > 0 {
		os.Exit(3)
	}
}
