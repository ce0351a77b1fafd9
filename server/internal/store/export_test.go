package store

// SetStep has fn called before each step of every Put of f, with the step's name; its error fails the step.
func (f *Folder) SetStep(fn func(name string) error) { f.step = fn }
