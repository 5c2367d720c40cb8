// Reads pages as Prometheus 3 does and prints what it finds in them, for the comparison tests.
//
// One page after another from standard input: a line of JSON (type Page), then as many bytes as it says. One line of JSON (type Answer) to
// standard output per page. Floats travel as their bits, since JSON has no NaN; texts as Go escapes them where they are no UTF-8.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// Page announces the bytes behind it.
type Page struct {
	ContentType string `json:"content_type"`
	Length      int    `json:"length"`
	// Native: scrape_native_histograms. Classic: always_scrape_classic_histograms. Convert: convert_classic_histograms_to_nhcb.
	Native  bool `json:"native"`
	Classic bool `json:"classic"`
	Convert bool `json:"convert"`
}

// Answer is what was read up to the error, if there is one.
type Answer struct {
	Metadata [][3]string `json:"metadata"`
	Samples  []Sample    `json:"samples"`
	Error    string      `json:"error"`
}

// Sample is one entry.
type Sample struct {
	Labels    [][2]string `json:"labels"`
	Value     string      `json:"value"`
	Time      *int64      `json:"time"`
	Start     int64       `json:"start"`
	Exemplars []Exemplar  `json:"exemplars"`
	Histogram *Histogram  `json:"histogram"`
}

// Exemplar of a sample.
type Exemplar struct {
	Labels [][2]string `json:"labels"`
	Value  string      `json:"value"`
	Time   *int64      `json:"time"`
}

// Histogram is a native one; absolute counts, by the index of their bucket. Of custom buckets also bounds and spans.
type Histogram struct {
	Schema        int32       `json:"schema"`
	ZeroThreshold string      `json:"zero_threshold"`
	ZeroCount     string      `json:"zero_count"`
	Count         string      `json:"count"`
	Sum           string      `json:"sum"`
	Float         bool        `json:"float"`
	Hint          int         `json:"hint"`
	Positive      [][2]string `json:"positive"`
	Negative      [][2]string `json:"negative"`
	Bounds        []string    `json:"bounds"`
	Spans         [][2]int64  `json:"spans"`
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return
		}
		var page Page
		if err == nil {
			err = json.Unmarshal(line, &page)
		}
		body := make([]byte, page.Length)
		if err == nil {
			_, err = io.ReadFull(in, body)
		}
		if err == nil {
			err = json.NewEncoder(out).Encode(read(page, body))
		}
		if err == nil {
			err = out.Flush()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// read also checks what the scrape loop checks of every label set.
func read(page Page, body []byte) (answer Answer) {
	defer func() {
		if panicked := recover(); panicked != nil {
			answer.Error = fmt.Sprint("panic: ", panicked)
		}
	}()
	parser, err := textparse.New(body, page.ContentType, nil, textparse.ParserOptions{
		IgnoreNativeHistograms:                  !page.Native,
		KeepClassicOnClassicAndNativeHistograms: page.Classic,
		ConvertClassicHistogramsToNHCB:          page.Convert,
	})
	if parser == nil {
		return Answer{Error: err.Error()}
	}
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return answer
		}
		if err != nil {
			answer.Error = err.Error()
			return answer
		}
		switch entry {
		case textparse.EntryType:
			name, kind := parser.Type()
			answer.metadata("type", name, string(kind))
		case textparse.EntryHelp:
			name, help := parser.Help()
			answer.metadata("help", name, string(help))
		case textparse.EntryUnit:
			name, unit := parser.Unit()
			answer.metadata("unit", name, string(unit))
		case textparse.EntrySeries, textparse.EntryHistogram:
			sample, err := sample(parser, entry, strings.HasPrefix(page.ContentType, "application/vnd"))
			if err != nil {
				answer.Error = err.Error()
				return answer
			}
			answer.Samples = append(answer.Samples, sample)
		}
	}
}

func (answer *Answer) metadata(kind string, name []byte, text string) {
	answer.Metadata = append(answer.Metadata, [3]string{kind, string(name), text})
}

// sample reads one entry; hasStart: the start timestamp may be asked for, which in OpenMetrics would take the _created series away.
func sample(parser textparse.Parser, entry textparse.Entry, hasStart bool) (Sample, error) {
	var (
		sample Sample
		time   *int64
		value  float64
		whole  *histogram.Histogram
		float  *histogram.FloatHistogram
		set    labels.Labels
	)
	if entry == textparse.EntryHistogram {
		_, time, whole, float = parser.Histogram()
		// The storage refuses what is not valid, and with it the page.
		var invalid error
		if whole != nil {
			invalid = whole.Validate()
			float = whole.ToFloat(nil)
		} else {
			invalid = float.Validate()
		}
		if invalid != nil {
			return sample, invalid
		}
		sample.Histogram = native(float, whole == nil)
	} else {
		_, time, value = parser.Series()
		sample.Value = bits(value)
	}
	if time != nil {
		moment := *time
		sample.Time = &moment
	}
	parser.Labels(&set)
	if !set.Has(model.MetricNameLabel) || !set.IsValid(model.UTF8Validation) {
		return sample, fmt.Errorf("invalid metric name or label names: %s", set)
	}
	if name, twice := set.HasDuplicateLabelNames(); twice {
		return sample, fmt.Errorf("label %q is there twice", name)
	}
	sample.Labels = pairs(set)
	for {
		// A fresh one each time: the parser leaves alone what it does not find.
		var found exemplar.Exemplar
		if !parser.Exemplar(&found) {
			break
		}
		one := Exemplar{Labels: pairs(found.Labels), Value: bits(found.Value)}
		if found.HasTs {
			one.Time = &found.Ts
		}
		sample.Exemplars = append(sample.Exemplars, one)
	}
	if hasStart {
		sample.Start = parser.StartTimestamp()
	}
	return sample, nil
}

func pairs(set labels.Labels) [][2]string {
	pairs := [][2]string{}
	set.Range(func(label labels.Label) { pairs = append(pairs, [2]string{label.Name, label.Value}) })
	return pairs
}

func native(histogram *histogram.FloatHistogram, float bool) *Histogram {
	found := &Histogram{
		Schema:        histogram.Schema,
		ZeroThreshold: bits(histogram.ZeroThreshold),
		ZeroCount:     bits(histogram.ZeroCount),
		Count:         bits(histogram.Count),
		Sum:           bits(histogram.Sum),
		Float:         float,
		Hint:          int(histogram.CounterResetHint),
		Positive:      [][2]string{},
		Negative:      [][2]string{},
		Bounds:        []string{},
		Spans:         [][2]int64{},
	}
	for _, bound := range histogram.CustomValues {
		found.Bounds = append(found.Bounds, bits(bound))
	}
	if histogram.UsesCustomBuckets() {
		for _, span := range histogram.PositiveSpans {
			found.Spans = append(found.Spans, [2]int64{int64(span.Offset), int64(span.Length)})
		}
	}
	for buckets := histogram.PositiveBucketIterator(); buckets.Next(); {
		found.Positive = append(found.Positive, [2]string{strconv.Itoa(int(buckets.At().Index)), bits(buckets.At().Count)})
	}
	for buckets := histogram.NegativeBucketIterator(); buckets.Next(); {
		found.Negative = append(found.Negative, [2]string{strconv.Itoa(int(buckets.At().Index)), bits(buckets.At().Count)})
	}
	return found
}

func bits(value float64) string {
	return fmt.Sprintf("%016x", math.Float64bits(value))
}
