// Command nri-plugin is a plugin for tests of the NRI: it does what the file that its one argument names, or its
// configuration, tells it to, on containers and pods whose annotations name it, and writes down what it is told.
//
// A wish is a JSON object, read anew for every event: see type wish.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type wish struct {
	// Adjust is laid over new containers.
	Adjust *api.ContainerAdjustment `json:"adjust"`
	// Update changes other containers when one is made, by their names.
	Update map[string]*api.LinuxResources `json:"update"`
	// Limit is put into every update of a container.
	Limit *api.LinuxResources `json:"limit"`
	// Fail makes these events fail, with these words.
	Fail map[string]string `json:"fail"`
	// Hang makes these events take an hour.
	Hang []string `json:"hang"`
	// Crash makes the plugin end at these events.
	Crash []string `json:"crash"`
	// Reject is a validator's word against every adjustment.
	Reject string `json:"reject"`
	// Push asks for updates without being asked, after these events.
	Push map[string]map[string]*api.LinuxResources `json:"push"`
}

type plugin struct {
	stub  stub.Stub
	file  string
	out   string
	mu    sync.Mutex
	names map[string]string
}

func (p *plugin) wish() wish {
	var w wish
	if text, err := os.ReadFile(p.file); err == nil {
		if err := json.Unmarshal(text, &w); err != nil {
			p.say("bad wish: %v", err)
		}
	}
	return w
}

func (p *plugin) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(p.out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer f.Close()
	fmt.Fprintf(f, format+"\n", args...)
}

func (p *plugin) event(name, what string) error {
	p.say("%s %s", name, what)
	w := p.wish()
	for _, hang := range w.Hang {
		if hang == name {
			time.Sleep(time.Hour)
		}
	}
	for _, crash := range w.Crash {
		if crash == name {
			os.Exit(7)
		}
	}
	if words, ok := w.Fail[name]; ok {
		return errors.New(words)
	}
	if updates, ok := w.Push[name]; ok {
		go func() {
			failed, err := p.stub.UpdateContainers(p.updates(updates))
			p.say("pushed %d failed %v", len(failed), err)
		}()
	}
	return nil
}

func (p *plugin) updates(wanted map[string]*api.LinuxResources) []*api.ContainerUpdate {
	p.mu.Lock()
	defer p.mu.Unlock()
	var updates []*api.ContainerUpdate
	for name, resources := range wanted {
		id, ok := p.names[name]
		if !ok {
			id = name
		}
		updates = append(updates, &api.ContainerUpdate{
			ContainerId: id,
			Linux:       &api.LinuxContainerUpdate{Resources: resources},
		})
	}
	return updates
}

func (p *plugin) learn(c *api.Container) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names[c.Name] = c.Id
	return c.Name
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	p.say("Configure %s %s", runtime, strings.TrimSpace(config))
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	var names []string
	for _, pod := range pods {
		names = append(names, pod.Name)
	}
	for _, c := range containers {
		names = append(names, p.learn(c)+":"+strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_")))
	}
	return nil, p.event("Synchronize", strings.Join(names, " "))
}

func (p *plugin) Shutdown(context.Context) { p.say("Shutdown") }

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RunPodSandbox", pod.Name+" "+strings.Join(pod.Ips, ","))
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("StopPodSandbox", pod.Name)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RemovePodSandbox", pod.Name)
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.event("CreateContainer", p.learn(c)); err != nil {
		return nil, nil, err
	}
	w := p.wish()
	return w.Adjust, p.updates(w.Update), nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostCreateContainer", c.Name)
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("StartContainer", c.Name)
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostStartContainer", c.Name)
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.event("UpdateContainer", fmt.Sprintf("%s shares=%d", c.Name, r.GetCpu().GetShares().GetValue())); err != nil {
		return nil, err
	}
	if limit := p.wish().Limit; limit != nil {
		return p.updates(map[string]*api.LinuxResources{c.Name: limit}), nil
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostUpdateContainer", c.Name)
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.event("StopContainer", fmt.Sprintf("%s code=%d", c.Name, c.ExitCode))
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("RemoveContainer", c.Name)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, req *api.ValidateContainerAdjustmentRequest) error {
	if err := p.event("ValidateContainerAdjustment", req.Container.Name); err != nil {
		return err
	}
	if reason := p.wish().Reject; reason != "" {
		return errors.New(reason)
	}
	return nil
}

func main() {
	name := flag.String("name", "", "the plugin's name, unless the daemon starts it")
	idx := flag.String("idx", "", "the plugin's index, unless the daemon starts it")
	dir := flag.String("dir", "/run/nri-test", "where wishes are read and events are written")
	again := flag.Bool("again", false, "connect again for as long as it lives")
	flag.Parse()
	title := *idx + "-" + *name
	options := []stub.Option{stub.WithPluginName(*name), stub.WithPluginIdx(*idx), stub.WithSocketPath("/run/nri/nri.sock")}
	if launched := os.Getenv(api.PluginSocketEnvVar) != ""; launched {
		// The stub takes its names from the environment, and no others then.
		title = os.Getenv(api.PluginIdxEnvVar) + "-" + os.Getenv(api.PluginNameEnvVar)
		options = nil
	}
	for {
		p := &plugin{file: *dir + "/" + title + ".json", out: *dir + "/" + title + ".log", names: map[string]string{}}
		s, err := stub.New(p, options...)
		if err == nil {
			p.stub = s
			err = s.Run(context.Background())
		}
		if !*again {
			fmt.Fprintln(os.Stderr, "the connection ended:", err)
			os.Exit(1)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
