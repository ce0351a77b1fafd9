package strictjson_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"bmsota/strictjson"
)

func TestWhatIsNotOnePlainObjectIsRefused(t *testing.T) {
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"k%d":0,`, i)
		}
		return "{" + strings.TrimSuffix(b.String(), ",") + "}"
	}
	nested := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"empty object":              {`{}`, true},
		"spaces around":             {" \t\r\n{ } \n", true},
		"nothing":                   {"", false},
		"an array":                  {"[]", false},
		"cut off":                   {`{"a":1`, false},
		"comma at the end":          {`{"a":1,}`, false},
		"no colon":                  {`{"a" 1}`, false},
		"no comma":                  {`{"a":1 "b":2}`, false},
		"a number as key":           {`{1:2}`, false},
		"something after it":        {`{} {}`, false},
		"a key twice":               {`{"a":1,"a":1}`, false},
		"a key twice, escaped":      {`{"a":1,"\u0061":1}`, false},
		"a key twice, further down": {`{"b":{"a":1,"a":1}}`, true},
		"two keys by case":          {`{"a":1,"A":1}`, true},
		"invalid UTF-8":             {"{\"a\":\"\xff\"}", false},
		"as many keys as may be":    {keys(strictjson.MaxKeys), true},
		"one key more":              {keys(strictjson.MaxKeys + 1), false},
		"as deep as may be":         {nested(strictjson.MaxDepth), true},
		"one deeper":                {nested(strictjson.MaxDepth + 1), false},
		"brackets in a text":        {`{"a":"\"` + strings.Repeat("[", 40) + `"}`, true},
	} {
		if _, err := strictjson.Parse([]byte(c.text)); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFieldsAreTakenByTypeAndRange(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"n":5}`: true, `{"n":-0}`: true, `{"n":null}`: true, `{"N":"x"}`: true, `{"n":5.0}`: false, `{"n":5e0}`: false,
		`{"n":9223372036854775807}`: true, `{"n":9223372036854775808}`: false, `{"n":"5"}`: false, `{"n":true}`: false,
		`{"u":4294967295}`: true, `{"u":4294967296}`: false, `{"u":-0}`: false, `{"u":-1}`: false,
		`{"f":1e400}`: false, `{"f":1e-400}`: true, `{"f":0.5}`: true,
		`{"f":0.` + strings.Repeat("0", 30) + `}`: true, `{"f":0.` + strings.Repeat("0", 31) + `}`: false,
		`{"b":true}`: true, `{"b":1}`: false, `{"s":"a\tb\nc"}`: true, `{"s":"a\u0000"}`: false, `{"s":"a\u007f"}`: false,
		`{"s":"12345678"}`: true, `{"s":"123456789"}`: false, `{"s":["a"]}`: false,
		`{"o":{"n":1}}`: true, `{"o":{"n":1,"n":1}}`: false, `{"o":{"n":"x"}}`: false, `{"o":[]}`: false, `{"o":null}`: true,
	} {
		o, err := strictjson.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var n int64
		var u uint32
		var f float64
		var b bool
		var s string
		o.Take("n", &n)
		o.Take("u", &u)
		o.Take("f", &f)
		o.Take("b", &b)
		o.Text("s", 8, &s)
		o.Sub("o", func(sub *strictjson.Object) { sub.Take("n", &n) })
		if (o.Err() == nil) != ok {
			t.Errorf("%s: %v", text, o.Err())
		}
	}
}

func TestFieldsThatCameInAnotherFormAreHeldToTheSameRules(t *testing.T) {
	var o strictjson.Object
	for i := range strictjson.MaxKeys {
		if err := o.Set(fmt.Sprint(i), i); err != nil {
			t.Fatal(err)
		}
	}
	if o.Set("0", 0) == nil || o.Set("one more", 0) == nil {
		t.Error("a key twice, or one key too many, was taken")
	}
	var n int
	if o.Take("7", &n); n != 7 || o.Err() != nil {
		t.Errorf("took %d, %v", n, o.Err())
	}
}

// FuzzTheWalkFindsWhatADecoderFinds holds Parse to encoding/json, which reads the same object another way.
func FuzzTheWalkFindsWhatADecoderFinds(f *testing.F) {
	for _, s := range []string{`{}`, ` { } `, `{"a":1}`, "\t{ \"a\" : 1 ,\r\n\"b\":[1,{\"c\":\"}]\\\"\"}] , \"d\" :{ } }\n", `{"\u0061\\":"\\","b\"":null}`,
		`{"a":"{","b":true,"c":-1.5e3 }`, `{"a":1,"\u0061":2}`, `{"a":1} x`, `[1]`, `1`, `"a"`, ``, `{"a"}`, `{"a":1,}`, `{"\ud800":"\udfff"}`, `{"":""}`,
		`{"a":4294967295,"b":4294967296,"c":-1,"d":-0,"e":999999999999999999,"f":9223372036854775808,"g":00}`, `{"a":tru}`, `{"a":1.}`, `{"a":1e+}`, "{\"a\":\"\n\"}", `{"a":"\u12"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		o, err := strictjson.Parse(b)
		if !bytes.Equal(b, given) {
			t.Fatalf("%q became %q", given, b)
		}
		var want map[string]json.RawMessage
		wantErr := json.Unmarshal(b, &want)
		if err == nil && (wantErr != nil || want == nil) {
			t.Fatalf("%q is read, and is no object (%v)", b, wantErr)
		}
		refused := err != nil && (strings.Contains(err.Error(), "twice") || strings.Contains(err.Error(), "more than") || strings.Contains(err.Error(), "UTF-8"))
		if err != nil && !refused && wantErr == nil && want != nil {
			t.Fatalf("%q is not read: %v", b, err)
		}
		if err != nil {
			return
		}
		for i := range b {
			b[i] = 'x' // the caller uses its bytes again
		}
		for key, raw := range want {
			alike[int](t, given, key, raw)
			alike[int64](t, given, key, raw)
			alike[uint32](t, given, key, raw)
			alike[uint64](t, given, key, raw)
			alike[bool](t, given, key, raw)
			alike[string](t, given, key, raw)
		}
		for key, raw := range want {
			var have, is any
			if json.Unmarshal(raw, &is) != nil {
				continue // a number beyond a float64
			}
			switch is.(type) {
			case nil, map[string]any, []any:
				continue
			}
			have = "nothing"
			switch is.(type) {
			case string:
				var text string
				o.Take(key, &text)
				have = text
			case bool:
				var yes bool
				o.Take(key, &yes)
				have = yes
			case float64:
				var n float64
				if o.Take(key, &n); len(raw) > strictjson.MaxNumber {
					return
				}
				have = n
			}
			if o.Err() != nil || have != is {
				t.Fatalf("key %q of %q is %v (%v), want %v", key, given, have, o.Err(), is)
			}
		}
	})
}

// alike holds Take of one field to encoding/json.
func alike[T comparable](t *testing.T, object []byte, key string, raw json.RawMessage) {
	o, err := strictjson.Parse(object)
	if err != nil {
		t.Fatal(err)
	}
	var have, want T
	o.Take(key, &have)
	wantErr := json.Unmarshal(raw, &want)
	if wantErr == nil && o.Err() != nil && len(raw) > strictjson.MaxNumber {
		return
	}
	if (o.Err() == nil) != (wantErr == nil) || wantErr == nil && have != want {
		t.Fatalf("key %q of %q as %T is %v (%v), want %v (%v)", key, object, have, have, o.Err(), want, wantErr)
	}
}
