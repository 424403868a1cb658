// SPDX-License-Identifier: MIT

// golang.go: goroutines and channels, with the command line and the output of
// bench.h.
//
// Rows of one thread run with GOMAXPROCS(1), the others with two.  A round
// trip of `switch` is a Gosched of the main goroutine and one of the other.
// sync.Mutex does not hand itself on, so each goroutine of `mutex_wN` yields
// once with the lock held.  `wake_asleep` locks both goroutines to threads of
// their own, which is what a wake-up between threads costs in Go.  The posts
// go through one buffered channel.  AfterFunc runs each callback in a new
// goroutine, and timer_fire counts that.  `restart_all` is Broadcast of a Cond
// with a lock that does nothing, to goroutines that each count it and wait
// again.  `parked` is goroutines that receive from a channel that nobody sends
// to, and its unit is bytes, not nanoseconds (bench_memory.h).  `rwlock_t2` has four goroutines for each of two threads, not locked
// to them, and shows little contention: the goroutines rarely meet, and the
// writer is another one than before some 40 times in 7,500.  With goroutines
// locked to threads it is the same.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	ring       = 4096
	writeEvery = 20
)

func check(good bool, what string) {
	if !good {
		fmt.Fprintln(os.Stderr, "bench: does not hold:", what)
		os.Exit(1)
	}
}

func switchOver(count, others int) time.Duration {
	runtime.GOMAXPROCS(1)
	over := false
	calls := 0
	var all sync.WaitGroup
	for i := 0; i < others; i++ {
		all.Add(1)
		go func() {
			for !over {
				calls++
				runtime.Gosched()
			}
			all.Done()
		}()
	}
	begin := time.Now()
	for calls < count {
		runtime.Gosched()
	}
	elapsed := time.Since(begin)
	done := calls
	over = true
	all.Wait()
	return time.Duration(float64(elapsed) * float64(count) / float64(done))
}

func create(count int) time.Duration {
	runtime.GOMAXPROCS(1)
	calls := 0
	over := make(chan struct{})
	begin := time.Now()
	for i := 0; i < count; i++ {
		go func() {
			calls++
			over <- struct{}{}
		}()
		<-over
	}
	elapsed := time.Since(begin)
	check(calls == count, "each goroutine runs")
	return elapsed
}

func mutex(count int) time.Duration {
	runtime.GOMAXPROCS(1)
	var lock sync.Mutex
	begin := time.Now()
	for i := 0; i < count; i++ {
		lock.Lock()
		lock.Unlock()
	}
	return time.Since(begin)
}

func contend(count, contenders int) time.Duration {
	runtime.GOMAXPROCS(1)
	var lock sync.Mutex
	var all sync.WaitGroup
	calls := 0
	begin := time.Now()
	for i := 0; i < contenders; i++ {
		all.Add(1)
		go func() {
			for enough := false; !enough; {
				lock.Lock()
				enough = calls >= count
				if !enough {
					calls++
				}
				runtime.Gosched()
				lock.Unlock()
			}
			all.Done()
		}()
	}
	all.Wait()
	elapsed := time.Since(begin)
	check(calls == count, "each acquisition is counted")
	return elapsed
}

func mutexThreads(count, threads int) time.Duration {
	runtime.GOMAXPROCS(threads)
	var lock sync.Mutex
	var all, ready, start sync.WaitGroup
	var over, made int64
	counter := 0
	start.Add(1)
	for i := 0; i < threads; i++ {
		all.Add(1)
		ready.Add(1)
		go func() {
			runtime.LockOSThread()
			own := int64(0)
			ready.Done()
			start.Wait()
			for atomic.LoadInt64(&over) == 0 {
				lock.Lock()
				counter++
				lock.Unlock()
				own++
			}
			atomic.AddInt64(&made, own)
			all.Done()
		}()
	}
	ready.Wait()
	begin := time.Now()
	start.Done()
	time.Sleep(50 * time.Millisecond)
	atomic.StoreInt64(&over, 1)
	all.Wait()
	elapsed := time.Since(begin)
	check(int64(counter) == made, "the lock excludes")
	return time.Duration(float64(elapsed) * float64(count) / float64(made))
}

// What Wait() unlocks when the waiter is in the list.
type noLock struct{}

func (noLock) Lock()   {}
func (noLock) Unlock() { waiting.queued++ }

var waiting struct {
	gong       *sync.Cond
	waiters    int
	queued     int // since the start
	times, ran int
}

func waitOnAndOn() {
	for mine := waiting.times + 1; ; mine++ {
		waiting.gong.Wait()
		check(mine == waiting.times, "a waiter runs once each time")
		waiting.ran++
	}
}

func restartAll(count int) time.Duration {
	runtime.GOMAXPROCS(1)
	w := &waiting
	if w.gong == nil {
		w.gong = sync.NewCond(noLock{})
	}
	for ; w.waiters < count; w.waiters++ {
		go waitOnAndOn()
	}
	// All wait: some may have been preempted on their way.
	for w.queued < count*(w.times+1) {
		runtime.Gosched()
	}
	w.ran = 0
	w.times++
	begin := time.Now()
	w.gong.Broadcast()
	for w.ran < count {
		runtime.Gosched()
	}
	elapsed := time.Since(begin)
	check(w.ran == count, "each waiter runs")
	return elapsed
}

// As bench_rwlock.h has it.
func rwlock(count, threads, users int) time.Duration {
	runtime.GOMAXPROCS(threads)
	var lock sync.RWMutex
	var all sync.WaitGroup
	first, second := 0, 0
	per := count / users
	begin := time.Now()
	for i := 0; i < users; i++ {
		all.Add(1)
		go func() {
			for j := 0; j < per; j++ {
				if j%writeEvery == 0 {
					lock.Lock()
					first++
					second++
					lock.Unlock()
				} else {
					lock.RLock()
					check(first == second,
						"no reader sees half a write")
					lock.RUnlock()
				}
			}
			all.Done()
		}()
	}
	all.Wait()
	elapsed := time.Since(begin)
	writes := (per + writeEvery - 1) / writeEvery * users
	check(first == writes && second == writes, "each write is counted")
	return elapsed
}

type slot struct {
	busy atomic.Bool
	_    [60]byte
}

func posts(count, producers int) time.Duration {
	runtime.GOMAXPROCS(runtime.NumCPU())
	queue := make(chan *slot, ring)
	per := count / producers
	begin := time.Now()
	for i := 0; i < producers; i++ {
		go func() {
			slots := make([]slot, ring)
			for j := 0; j < per; j++ {
				s := &slots[j%ring]
				for s.busy.Load() {
					runtime.Gosched()
				}
				s.busy.Store(true)
				queue <- s
			}
		}()
	}
	for i := 0; i < per*producers; i++ {
		s := <-queue
		check(s.busy.Load(), "a slot runs once for each post")
		s.busy.Store(false)
	}
	return time.Since(begin)
}

func wake(count int) time.Duration {
	runtime.GOMAXPROCS(runtime.NumCPU())
	there, back := make(chan int), make(chan int)
	over := make(chan time.Duration)
	go func() {
		runtime.LockOSThread()
		for i := 0; i < count; i++ {
			back <- <-there
		}
	}()
	go func() {
		runtime.LockOSThread()
		begin := time.Now()
		for i := 0; i < count; i++ {
			there <- i
			check(<-back == i, "the value comes back")
		}
		over <- time.Since(begin)
	}()
	return <-over
}

func farTimers(count int) (arm, cancel time.Duration) {
	runtime.GOMAXPROCS(1)
	random := rand.New(rand.NewSource(1))
	delays := make([]time.Duration, count)
	for i := range delays {
		delays[i] = time.Duration(10000+random.Intn(1000001)) *
			time.Millisecond
	}
	order := random.Perm(count)
	timers := make([]*time.Timer, count)
	begin := time.Now()
	for i := range timers {
		timers[i] = time.AfterFunc(delays[i], func() {})
	}
	arm = time.Since(begin)
	begin = time.Now()
	for _, i := range order {
		check(timers[i].Stop(), "no far timer fires")
	}
	return arm, time.Since(begin)
}

func fireTimers(count int) time.Duration {
	runtime.GOMAXPROCS(1)
	random := rand.New(rand.NewSource(1))
	fired := 0
	start := time.Now()
	for i := 0; i < count; i++ {
		due := start.Add(time.Duration(100+random.Intn(50)) *
			time.Millisecond)
		time.AfterFunc(time.Until(due), func() { fired++ })
	}
	for time.Since(start) < 160*time.Millisecond {
	}
	begin := time.Now()
	for fired < count {
		runtime.Gosched()
	}
	return time.Since(begin)
}

// Resident memory and page tables of the process, in bytes.
func memory() int {
	text, err := os.ReadFile("/proc/self/status")
	check(err == nil, "the kernel tells what is resident")
	bytes := 0
	fields := regexp.MustCompile(`(?m)^Vm(RSS|PTE):\s*(\d+)`)
	for _, field := range fields.FindAllSubmatch(text, -1) {
		kib, _ := strconv.Atoi(string(field[2]))
		bytes += 1024 * kib
	}
	return bytes
}

var park struct {
	parked, before int
	forever        chan struct{}
}

func parked(count int) time.Duration {
	runtime.GOMAXPROCS(1)
	p := &park
	if p.forever == nil {
		p.before = memory()
		p.forever = make(chan struct{})
	}
	ran := p.parked
	for ; p.parked < count; p.parked++ {
		go func() {
			ran++
			<-p.forever
		}()
	}
	for i := 0; ran < count && i < 1000000; i++ {
		runtime.Gosched()
	}
	check(ran == count, "each goroutine runs")
	return time.Duration(memory() - p.before)
}

var workloads = map[string]func(int) time.Duration{
	"switch":      func(n int) time.Duration { return switchOver(n, 1) },
	"switch_1000": func(n int) time.Duration { return switchOver(n, 1000) },
	"create":      create,
	"mutex_1":     mutex,
	"mutex_w2":    func(n int) time.Duration { return contend(n, 2) },
	"mutex_w10":   func(n int) time.Duration { return contend(n, 10) },
	"mutex_w100":  func(n int) time.Duration { return contend(n, 100) },
	"mutex_t2":    func(n int) time.Duration { return mutexThreads(n, 2) },
	"mutex_t5":    func(n int) time.Duration { return mutexThreads(n, 5) },
	"restart_all": restartAll,
	"parked":      parked,
	"rwlock_1":    func(n int) time.Duration { return rwlock(n, 1, 1) },
	"rwlock_t2":   func(n int) time.Duration { return rwlock(n, 2, 8) },
	"post_1":      func(n int) time.Duration { return posts(n, 1) },
	"post_3":      func(n int) time.Duration { return posts(n, 3) },
	"wake_asleep": wake,
	"timer_arm": func(n int) time.Duration {
		arm, _ := farTimers(n)
		return arm
	},
	"timer_cancel": func(n int) time.Duration {
		_, cancel := farTimers(n)
		return cancel
	},
	"timer_fire": fireTimers,
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--list" {
		var names []string
		for name := range workloads {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Println(strings.Join(names, "\n"))
		return
	}
	count, rounds := 1000000, 1
	if len(os.Args) > 2 {
		count, _ = strconv.Atoi(os.Args[2])
	}
	if len(os.Args) > 3 {
		rounds, _ = strconv.Atoi(os.Args[3])
	}
	if len(os.Args) < 2 || workloads[os.Args[1]] == nil || count <= 0 ||
		rounds <= 0 {
		fmt.Fprintln(os.Stderr, "Usage: golang --list | WORKLOAD [COUNT [ROUNDS]]")
		os.Exit(2)
	}
	work := workloads[os.Args[1]]
	work(count)
	var values []float64
	for i := 0; i < rounds; i++ {
		runtime.GC()
		values = append(values,
			float64(work(count).Nanoseconds())/float64(count))
	}
	sorted := append([]float64(nil), values...)
	sort.Float64s(sorted)
	out, _ := json.Marshal(map[string]interface{}{
		"rival": "go", "version": runtime.Version(),
		"settings": "GOMAXPROCS 1 for rows of one thread, a collection " +
			"before each round; where waiters are wanted, a yield " +
			"under the lock lets them queue",
		"workload": os.Args[1], "count": count, "min": sorted[0],
		"median": sorted[rounds/2], "max": sorted[rounds-1], "values": values,
	})
	fmt.Println(string(out))
}
